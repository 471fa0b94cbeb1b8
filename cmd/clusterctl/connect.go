package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"bridged/internal/provision"
)

// connectionFlags are the command line's share of a connection. There is no
// flag for a password: a process list shows flags.
type connectionFlags struct {
	server       string
	user         string
	passwordFile string
	thumbprint   string
	caFile       string
	insecure     bool
}

// connection is everything needed to sign in, with references resolved.
type connection struct {
	Cluster    *provision.Cluster
	Server     string
	User       string
	Password   string
	Token      string
	Thumbprint string
	CAFile     string
	Insecure   bool
}

func (a *app) connectionFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&a.flags.server, "server", "", "vCenter as host[:port] or URL (else the blueprint's, else GOVC_URL)")
	f.StringVar(&a.flags.user, "user", "", "user of vCenter (else the blueprint's, else GOVC_USERNAME)")
	f.StringVar(&a.flags.passwordFile, "password-file", "", "file with the password (else the blueprint's reference, else GOVC_PASSWORD)")
	f.StringVar(&a.flags.thumbprint, "thumbprint", "", "believe the vCenter certificate with this SHA-256 or SHA-1 thumbprint only")
	f.StringVar(&a.flags.caFile, "ca-file", "", "believe vCenter certificates of this CA (PEM)")
	f.BoolVar(&a.flags.insecure, "insecure", false, "believe any vCenter certificate: whoever answers gets the password")
}

// connection collects flags, blueprint and GOVC_* variables, in this order of precedence.
func (a *app) connection(cmd *cobra.Command, ctx context.Context, b *blueprint) (*connection, error) {
	spec := &b.cluster.Spec.Provider.VSphere
	c := &connection{Cluster: b.cluster}
	var errs []error
	resolve := func(flag, key string, v provision.Value, variables ...string) string {
		if flag != "" {
			return flag
		}
		value, err := b.secrets.Resolve(ctx, v)
		if err != nil {
			errs = append(errs, fmt.Errorf("spec.provider.vsphere.%s: %w", key, err))
		}
		for _, name := range variables {
			value = cmp.Or(value, a.getenv(name))
		}
		return value
	}
	c.Server = resolve(a.flags.server, "server", spec.Server, "GOVC_URL")
	var inURL *url.Userinfo
	c.Server, inURL = userinfo(c.Server)
	password := ""
	if a.flags.passwordFile != "" {
		text, err := os.ReadFile(a.flags.passwordFile)
		if err != nil {
			errs = append(errs, fmt.Errorf("--password-file: %w", err))
		}
		password = strings.TrimRight(string(text), "\r\n")
	}
	c.User = cmp.Or(resolve(a.flags.user, "auth.user", spec.Auth.User, "GOVC_USERNAME"), inURL.Username())
	c.Token = resolve("", "auth.token", spec.Auth.Token)
	if c.Token == "" {
		c.Password = resolve(password, "auth.password", spec.Auth.Password, "GOVC_PASSWORD")
		if fromURL, ok := inURL.Password(); ok {
			c.Password = cmp.Or(c.Password, fromURL)
		}
	}
	c.Thumbprint = cmp.Or(a.flags.thumbprint, spec.TLS.Thumbprint)
	c.CAFile = cmp.Or(a.flags.caFile, spec.TLS.CAFile, a.getenv("GOVC_TLS_CA_CERTS"))
	c.Insecure = a.flags.insecure || truth(a.getenv("GOVC_INSECURE"))
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	switch {
	case c.Server == "":
		return nil, errors.New("which vCenter? pass --server, write spec.provider.vsphere.server, or set GOVC_URL")
	case c.Token == "" && (c.User == "" || c.Password == ""):
		return nil, errors.New("no user or password for vCenter; write spec.provider.vsphere.auth, or set GOVC_USERNAME and GOVC_PASSWORD")
	}
	if c.Insecure {
		fmt.Fprintln(cmd.ErrOrStderr(), "warning: the vCenter certificate is not checked (--insecure or GOVC_INSECURE); --thumbprint is as easy and safe")
	}
	return c, nil
}

// userinfo takes user and password out of a URL, as govc allows in GOVC_URL.
func userinfo(server string) (string, *url.Userinfo) {
	full := server
	if !strings.Contains(full, "://") {
		full = "https://" + full
	}
	u, err := url.Parse(full)
	if err != nil || u.User == nil {
		return server, new(url.Userinfo)
	}
	user := u.User
	u.User = nil
	return u.String(), user
}

func truth(s string) bool { return s == "1" || strings.EqualFold(s, "true") }
