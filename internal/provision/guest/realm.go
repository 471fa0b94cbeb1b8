package guest

import (
	"fmt"
	"strings"
)

// access joins the node to an existing directory, where the blueprint asks for
// it: Active Directory through realmd, Lightwave through its own client, plain
// LDAP through sssd. The password is used once and not left in a file.
func (b *builder) access() error {
	r := b.spec.Access.Realm
	if r.Type == "" {
		return nil
	}
	password := ""
	if r.Type != "ldap" || r.User != "" {
		var err error
		if password, err = b.secret("access.realm.password"); err != nil {
			return fmt.Errorf("spec.access.realm.password: %w", err)
		}
	}
	const once = "/run/clusterctl/realm-password"
	join := func(command string) {
		b.add(file{path: once, content: password, mode: "0600"})
		b.run = append(b.run, command+"; status=$?; rm -f "+once+"; exit $status")
	}
	switch r.Type {
	case "ad":
		b.packages = append(b.packages, "realmd", "sssd", "adcli")
		join(fmt.Sprintf("realm join --user=%s %s < %s", shellQuote(r.User), shellQuote(r.Domain), once))
		if len(r.Groups) > 0 {
			var groups []string
			for _, g := range r.Groups {
				groups = append(groups, "-g "+shellQuote(g))
			}
			b.run = append(b.run, "realm permit "+strings.Join(groups, " "))
		}
	case "lightwave":
		b.packages = append(b.packages, "lightwave-client")
		join(fmt.Sprintf("/opt/vmware/bin/domainjoin join %s %s \"$(cat %s)\"", shellQuote(r.Domain), shellQuote(r.User), once))
	case "ldap":
		b.packages = append(b.packages, "sssd")
		var conf strings.Builder
		fmt.Fprintf(&conf, "# Written by clusterctl.\n[sssd]\nservices = nss, pam, ssh\ndomains = %[1]s\n\n[domain/%[1]s]\n"+
			"id_provider = ldap\nauth_provider = ldap\nldap_uri = %[2]s\nldap_search_base = %[3]s\nldap_tls_reqcert = demand\n"+
			"cache_credentials = true\nldap_user_ssh_public_key = sshPublicKey\n", r.Domain, r.Server, r.BaseDN)
		if r.User != "" {
			fmt.Fprintf(&conf, "ldap_default_bind_dn = %s\nldap_default_authtok = %s\n", r.User, password)
		}
		if len(r.Groups) > 0 {
			fmt.Fprintf(&conf, "access_provider = simple\nsimple_allow_groups = %s\n", strings.Join(r.Groups, ", "))
		}
		b.add(file{path: "/etc/sssd/sssd.conf", content: conf.String(), mode: "0600"})
		b.run = append(b.run, "systemctl enable --now sssd.service")
	default:
		return fmt.Errorf("spec.access.realm.type: want lightwave, ad or ldap, have %q", r.Type)
	}
	return nil
}
