package guest

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"text/template"

	"bridged/internal/provision"
	"bridged/templates"
)

// Render is a provision.GuestRenderer.
func Render(want *provision.Want, n *provision.Node, secret provision.SecretFunc) (provision.Guest, error) {
	b, err := newBuilder(want, n, secret)
	if err != nil {
		return provision.Guest{}, fmt.Errorf("node %s: %w", n.Name, err)
	}
	for _, part := range []func() error{
		b.repositories, b.zookeeper, b.docker, b.mesos, b.marathon, b.chronos,
		b.haproxy, b.bridged, b.access, b.addons, b.node,
	} {
		if err := part(); err != nil {
			return provision.Guest{}, fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	user, err := b.userData()
	if err != nil {
		return provision.Guest{}, fmt.Errorf("node %s: user-data: %w", n.Name, err)
	}
	return provision.Guest{UserData: user, MetaData: metaData(&want.Cluster.Spec.Network, n)}, nil
}

// file is one entry of write_files.
type file struct {
	path    string
	content string
	mode    string // octal, as text
	owner   string // user:group, "" for root
	early   bool   // needed before packages are installed
}

// service is one that the node starts, in the order of the list.
type service struct {
	Name  string // for reports
	Unit  string
	Check string // see clusterctl-node.sh.tmpl: http URL, zookeeper HOST PORT, active UNIT
}

// builder collects what one node gets.
type builder struct {
	want   *provision.Want
	spec   *provision.Spec
	n      *provision.Node
	secret provision.SecretFunc
	os     guestOS

	ensemble  []*provision.Node // ZooKeeper servers, by server id
	masters   []*provision.Node
	marathons []*provision.Node
	proxied   bool              // HAProxy and bridged are on this node
	reserve   provision.Reserve // what a slave leaves to the rest of the node

	files    []file
	services []service
	masks    []string // units that must not start by themselves
	boot     []string // further bootcmd lines
	run      []string // runcmd lines before the services start
	packages []string // further packages, beside the distro's
}

func newBuilder(want *provision.Want, n *provision.Node, secret provision.SecretFunc) (*builder, error) {
	spec := &want.Cluster.Spec
	system, err := guestOf(spec.Image.OS)
	if err != nil {
		return nil, err
	}
	b := &builder{want: want, spec: spec, n: n, secret: secret, os: system}
	b.proxied = b.group().HAProxy
	for _, m := range want.Nodes {
		if m.Has(provision.RoleZooKeeper) {
			b.ensemble = append(b.ensemble, m)
		}
		if m.Has(provision.RoleMaster) {
			b.masters = append(b.masters, m)
		}
		if m.Has(provision.RoleMarathon) {
			b.marathons = append(b.marathons, m)
		}
	}
	slices.SortFunc(b.ensemble, func(x, y *provision.Node) int { return x.ServerID - y.ServerID })
	for _, m := range b.ensemble {
		if !m.Address().IsValid() {
			return nil, fmt.Errorf("ZooKeeper node %s has no fixed address", m.Name)
		}
	}
	return b, nil
}

func (b *builder) add(f file) { b.files = append(b.files, f) }

// setting adds a file that holds one value, as Mesos' and Marathon's packages read flags.
func (b *builder) setting(dir, name, value string) {
	b.add(file{path: path.Join(dir, name), content: value + "\n"})
}

var guestTemplates = template.Must(template.New("").Option("missingkey=error").
	Funcs(template.FuncMap{"dir": path.Dir, "ext": path.Ext}).ParseFS(templates.Guest, "guest/*.tmpl"))

// text renders one of templates/guest.
func text(name string, data any) (string, error) {
	var out bytes.Buffer
	if err := guestTemplates.ExecuteTemplate(&out, name, data); err != nil {
		return "", err
	}
	return out.String(), nil
}

// template adds a file rendered from templates/guest/name.
func (b *builder) template(f file, name string, data any) error {
	content, err := text(name, data)
	if err != nil {
		return err
	}
	f.content = content
	b.add(f)
	return nil
}

// optional is the value of a secret, "" when the blueprint has none.
func (b *builder) optional(name string) (string, error) {
	value, err := b.secret(name)
	if errors.Is(err, provision.ErrNoSecret) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("secret %s: %w", name, err)
	}
	if strings.ContainsAny(value, "\n\r\x00") && !strings.HasPrefix(value, "-----BEGIN ") {
		return "", fmt.Errorf("secret %s: want one line of text", name)
	}
	return value, nil
}

// userData is the #cloud-config document.
func (b *builder) userData() ([]byte, error) {
	doc := ordered{}
	doc.set("preserve_hostname", false)
	// Minimal images lack update-locale, and a failed module makes cloud-init report an error for good.
	// The word, not the boolean: cloud-init's schema wants a string.
	doc.set("locale", "false")
	doc.set("ssh_pwauth", false)
	doc.set("disable_root", true)
	if err := b.users(&doc); err != nil {
		return nil, err
	}
	b.disks(&doc)
	b.time(&doc)
	b.aptSources(&doc)

	doc.set("bootcmd", b.bootCommands())
	doc.set("write_files", b.writeFiles())
	if b.spec.Image.Packages != "prebaked" {
		doc.set("package_update", true)
		doc.set("packages", b.packageList())
	}
	doc.set("runcmd", b.runCommands())

	return doc.appendTo([]byte("#cloud-config\n# Written by clusterctl for node " + b.n.Name + ".\n")), nil
}

// bootCommands run at every boot before packages are installed. Services are
// masked below /run until clusterctl-node starts them: a mask below /etc would
// stand in the way of the units that we write there. What is not this node's
// role is masked for good.
func (b *builder) bootCommands() [][]string {
	units := []string{}
	for _, s := range b.services {
		units = append(units, s.Unit)
	}
	cmds := [][]string{
		{"sh", "-c", "test -e /var/lib/clusterctl/started || systemctl mask --runtime " + strings.Join(units, " ")},
	}
	if len(b.masks) > 0 {
		cmds = append(cmds, append([]string{"systemctl", "mask"}, b.masks...))
	}
	for _, line := range b.boot {
		cmds = append(cmds, []string{"sh", "-c", line})
	}
	return cmds
}

func (b *builder) runCommands() [][]string {
	cmds := [][]string{
		{"/usr/local/sbin/clusterctl-node", "phase", "config", "applying configuration", "50"},
		{"systemctl", "daemon-reload"},
	}
	for _, line := range b.run {
		cmds = append(cmds, []string{"sh", "-c", line})
	}
	// What is not ours to run stays masked; our own units are unmasked by clusterctl-node.
	return append(cmds,
		[]string{"systemctl", "enable", "--now", "clusterctl-report.timer"},
		[]string{"systemctl", "enable", "clusterctl-node.service"},
		[]string{"systemctl", "start", "--no-block", "clusterctl-node.service"},
	)
}

func (b *builder) writeFiles() []ordered {
	slices.SortFunc(b.files, func(x, y file) int { return strings.Compare(x.path, y.path) })
	out := []ordered{}
	for _, f := range b.files {
		var entry ordered
		entry.set("path", f.path)
		mode := f.mode
		if mode == "" {
			mode = "0644"
		}
		entry.set("permissions", mode)
		if f.owner != "" {
			entry.set("owner", f.owner)
		}
		if !f.early {
			entry.set("defer", true)
		}
		entry.set("content", f.content)
		out = append(out, entry)
	}
	return out
}
