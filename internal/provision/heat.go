package provision

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// heatVersion is the first template version in which everything used here
// exists (OpenStack Heat, template guide, "Heat template version").
const heatVersion = "2018-08-31"

// Heat writes the cluster as an OpenStack Heat template (HOT) with the same
// names, addresses, MACs, disks and cloud-init. Secrets are hidden parameters
// that Heat puts in place of their placeholders, so the template holds none.
func Heat(w *Want, render GuestRenderer) ([]byte, error) {
	h := &heat{want: w, resources: mapping(), outputs: mapping(), secrets: map[string]bool{}}
	h.groups()
	for _, n := range w.Nodes {
		guest, err := render(w, n, h.secret)
		if err != nil {
			return nil, fmt.Errorf("render guest files of %s: %w", n.Name, err)
		}
		h.node(n, guest)
	}
	doc := mapping(
		"heat_template_version", scalar(heatVersion),
		"description", scalar(fmt.Sprintf("Mesos cluster %s, %d nodes, %s", w.Cluster.Metadata.Name, len(w.Nodes), w.Distro.Name)),
		"parameters", h.parameters(),
		"resources", h.resources,
		"outputs", h.outputs,
	)
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Made by clusterctl export heat; change the blueprint and export again.\n")
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

type heat struct {
	want      *Want
	resources *yaml.Node
	outputs   *yaml.Node
	secrets   map[string]bool // placeholders in use
}

var placeholder = regexp.MustCompile(`<secret:([A-Za-z0-9.\[\]]+)#[0-9]+>`)

// secret is the cluster's placeholder, noted as used.
func (h *heat) secret(name string) (string, error) {
	p, err := h.want.Cluster.Placeholder(name)
	if err == nil && placeholder.MatchString(p) {
		h.secrets[p] = true
	}
	return p, err
}

// parameter is the name of the parameter that carries a secret.
func parameter(placeholderText string) string {
	name := placeholder.FindStringSubmatch(placeholderText)[1]
	return strings.Trim(regexp.MustCompile(`[^A-Za-z0-9]+`).ReplaceAllString(name, "_"), "_")
}

func (h *heat) parameters() *yaml.Node {
	c := h.want.Cluster
	p := mapping(
		"network", mapping("type", scalar("string"), "default", scalar(c.Spec.Provider.VSphere.Network),
			"description", scalar("network whose subnet is "+c.Spec.Network.CIDR.String()),
			"constraints", sequence(mapping("custom_constraint", scalar("neutron.network")))),
		"image", mapping("type", scalar("string"), "default", scalar(or(c.Spec.Image.Template, h.want.Image)),
			"description", scalar("image with cloud-init, "+c.Spec.Image.OS),
			"constraints", sequence(mapping("custom_constraint", scalar("glance.image")))),
	)
	for _, g := range c.Spec.Groups {
		add(p, "flavor_"+g.Name, mapping("type", scalar("string"), "default", scalar(g.SizeName),
			"description", scalar(fmt.Sprintf("flavor of group %s: %d CPU, %s", g.Name, g.CPUs, g.Memory))))
	}
	for _, s := range sortedKeys(h.secrets) {
		add(p, parameter(s), mapping("type", scalar("string"), "hidden", boolean(true), "description", scalar("value of "+placeholder.FindStringSubmatch(s)[1])))
	}
	return p
}

// groups are the server groups that keep nodes on different hosts.
func (h *heat) groups() {
	for _, r := range h.want.Rules {
		if r.Kind != RuleSeparate {
			continue
		}
		policy := "soft-anti-affinity"
		if r.Mandatory {
			policy = "anti-affinity"
		}
		add(h.resources, heatGroup(r.Name), mapping("type", scalar("OS::Nova::ServerGroup"), "properties",
			mapping("name", scalar(r.Name), "policies", sequence(scalar(policy)))))
	}
}

func heatGroup(rule string) string { return "apart_" + rule[strings.LastIndexByte(rule, ':')+1:] }

func (h *heat) node(n *Node, guest Guest) {
	id := strings.TrimPrefix(n.Name, n.Cluster+"-")
	nic := n.NICs[0]
	port := mapping("name", scalar(n.Name), "network", call("get_param", "network"), "mac_address", scalar(nic.MAC))
	if nic.Address.IsValid() {
		add(port, "fixed_ips", sequence(mapping("ip_address", scalar(nic.Address.Addr().String()))))
	}
	add(h.resources, id+"_port", mapping("type", scalar("OS::Neutron::Port"), "properties", port))
	server := mapping(
		"name", scalar(n.Name),
		"image", call("get_param", "image"),
		"flavor", call("get_param", "flavor_"+n.Group),
		"networks", sequence(mapping("port", call("get_resource", id+"_port"))),
		"config_drive", boolean(true),
		"user_data_format", scalar("RAW"),
		"user_data", h.userData(string(guest.UserData)),
		"metadata", mapping(MarkCluster, scalar(n.Cluster), "clusterctl.group", scalar(n.Group)),
	)
	for _, r := range h.want.Rules {
		if r.Kind == RuleSeparate && slices.Contains(r.Nodes, n.Name) {
			add(server, "scheduler_hints", mapping("group", call("get_resource", heatGroup(r.Name))))
		}
	}
	add(h.resources, id, mapping("type", scalar("OS::Nova::Server"), "properties", server))
	for _, d := range n.Disks {
		disk := id + "_" + d.Name
		add(h.resources, disk, mapping("type", scalar("OS::Cinder::Volume"), "properties",
			mapping("name", scalar(n.Name+"-"+d.Name), "size", integer((d.SizeMiB+1023)/1024))))
		add(h.resources, disk+"_attachment", mapping("type", scalar("OS::Cinder::VolumeAttachment"), "properties",
			mapping("instance_uuid", call("get_resource", id), "volume_id", call("get_resource", disk))))
	}
	if n.Has(RoleMarathon) {
		add(h.outputs, "marathon_"+id, mapping("description", scalar("Marathon on "+n.Name), "value",
			mapping("str_replace", mapping("template", scalar(fmt.Sprintf("http://$address:%d", h.want.Cluster.Spec.Services.Marathon.Port)),
				"params", mapping("$address", callList("get_attr", id, "first_address"))))))
	}
}

// userData is the text itself, or a replacement of its placeholders.
func (h *heat) userData(text string) *yaml.Node {
	var used []string
	for _, s := range sortedKeys(h.secrets) {
		if strings.Contains(text, s) {
			used = append(used, s)
		}
	}
	if used == nil {
		return scalar(text)
	}
	params := mapping()
	for _, s := range used {
		add(params, s, call("get_param", parameter(s)))
	}
	return mapping("str_replace", mapping("template", scalar(text), "params", params))
}

// Small YAML builders: a node tree keeps the order in which keys were added.

func scalar(s string) *yaml.Node {
	n := new(yaml.Node)
	n.SetString(s)
	return n
}

func boolean(b bool) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: fmt.Sprint(b)}
}

func integer(i int64) *yaml.Node {
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: fmt.Sprint(i)}
}

func mapping(pairs ...any) *yaml.Node {
	m := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for i := 0; i < len(pairs); i += 2 {
		add(m, pairs[i].(string), pairs[i+1].(*yaml.Node))
	}
	return m
}

func add(m *yaml.Node, key string, value *yaml.Node) {
	m.Content = append(m.Content, scalar(key), value)
}

func sequence(items ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: items}
}

func call(function, argument string) *yaml.Node { return mapping(function, scalar(argument)) }

func callList(function string, arguments ...string) *yaml.Node {
	var items []*yaml.Node
	for _, a := range arguments {
		items = append(items, scalar(a))
	}
	return mapping(function, sequence(items...))
}
