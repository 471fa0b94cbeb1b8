package zdd

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// Labels of a deployment. The first ones are marathon-lb's, and its zdd.py's.
const (
	labelGroup   = "HAPROXY_DEPLOYMENT_GROUP"
	labelAlt     = "HAPROXY_DEPLOYMENT_ALT_PORT"
	labelColour  = "HAPROXY_DEPLOYMENT_COLOUR"
	labelStarted = "HAPROXY_DEPLOYMENT_STARTED_AT"
	labelTarget  = "HAPROXY_DEPLOYMENT_TARGET_INSTANCES"
	labelNew     = "HAPROXY_DEPLOYMENT_NEW_INSTANCES"
	labelAppID   = "HAPROXY_APP_ID"
	// labelSource tells a later run whether an app was made of the file it has.
	labelSource = "BRIDGED_ZDD_SOURCE"
)

func labelPort(i int) string { return "HAPROXY_" + strconv.Itoa(i) + "_PORT" }

// startedLayout is what Python's isoformat writes, in UTC: marathon-lb cannot compare times
// with a zone to those without.
const startedLayout = "2006-01-02T15:04:05.000000"

const maxDefinition = 4 << 20

// Definition is an app's next version as its file has it.
type Definition struct {
	doc       []byte
	id        string
	group     string
	instances int
	labels    map[string]string
	ports     []servicePort
	alt       []int // further service ports, 0: Marathon chooses
}

// servicePort is one service port and where it stands in the document.
type servicePort struct {
	path   []string
	number int
}

// ReadDefinition reads the definition of an app, in the form of any version of Marathon. Errors have CodeMissing.
func ReadDefinition(r io.Reader) (*Definition, error) {
	doc, err := io.ReadAll(io.LimitReader(r, maxDefinition+1))
	if err != nil {
		return nil, &Error{CodeMissing, err}
	}
	if len(doc) > maxDefinition {
		return nil, fail(CodeMissing, "want at most %d bytes", maxDefinition)
	}
	var body struct {
		ID        string            `json:"id"`
		Instances *int              `json:"instances"`
		Labels    map[string]string `json:"labels"`
	}
	if err := json.Unmarshal(doc, &body); err != nil {
		return nil, fail(CodeMissing, "not the definition of an app: %w", err)
	}
	d := &Definition{doc: doc, id: "/" + strings.Trim(body.ID, "/"), labels: body.Labels, instances: 1}
	if body.Instances != nil {
		d.instances = *body.Instances
	}
	d.group = groupOf(body.Labels)
	d.ports = servicePorts(doc)
	switch {
	case d.id == "/":
		return nil, fail(CodeMissing, "id: missing")
	case d.group == "":
		return nil, fail(CodeMissing, "labels.%s: missing; it names what load balancers serve as one app", labelGroup)
	case d.instances < 1:
		return nil, fail(CodeMissing, "instances: want at least 1, have %d", d.instances)
	case len(d.ports) == 0:
		return nil, fail(CodeMissing, "no service port: want container.portMappings, portDefinitions or ports")
	}
	if alt := body.Labels[labelAlt]; alt != "" {
		for word := range strings.SplitSeq(alt, ",") {
			n, err := portNumber(word)
			if err != nil {
				return nil, fail(CodeMissing, "labels.%s: %w", labelAlt, err)
			}
			d.alt = append(d.alt, n)
		}
	}
	for i := range d.ports {
		if v, ok := body.Labels[labelPort(i)]; ok {
			if _, err := portNumber(v); err != nil {
				return nil, fail(CodeMissing, "labels.%s: %w", labelPort(i), err)
			}
		}
	}
	return d, nil
}

func portNumber(word string) (int, error) {
	n, err := strconv.Atoi(strings.TrimSpace(word))
	if err != nil || n < 0 || n > 65535 {
		return 0, fmt.Errorf("want a port, 0 to 65535, have %q", word)
	}
	return n, nil
}

// groupOf is the deployment group of labels in the form of an app id, "" for none.
func groupOf(labels map[string]string) string {
	if g := strings.TrimPrefix(labels[labelGroup], "/"); g != "" {
		return "/" + g
	}
	return ""
}

// Group is the id under which load balancers serve the app.
func (d *Definition) Group() string { return d.group }

// source tells one definition from another.
func (d *Definition) source() string {
	sum := sha256.Sum256(d.doc)
	return hex.EncodeToString(sum[:6])
}

// servicePorts finds the service ports of a definition: those of its port mappings, else
// of its port definitions, else its ports, as Marathon itself does.
func servicePorts(doc []byte) []servicePort {
	places := []struct {
		list []string
		name string
	}{
		{[]string{"container", "portMappings"}, "servicePort"},
		{[]string{"container", "docker", "portMappings"}, "servicePort"},
		{[]string{"portDefinitions"}, "port"},
		{[]string{"ports"}, ""},
	}
	var network string
	if json.Unmarshal(find(doc, "container", "docker", "network"), &network) == nil && network == "HOST" {
		places = places[2:]
	}
	for _, p := range places {
		list, err := elements(find(doc, p.list...))
		if err != nil || len(list) == 0 {
			continue
		}
		ports := make([]servicePort, len(list))
		for i := range list {
			path := append(append([]string(nil), p.list...), strconv.Itoa(i))
			if p.name != "" {
				path = append(path, p.name)
			}
			ports[i].path = path
			if json.Unmarshal(find(doc, path...), &ports[i].number) != nil {
				ports[i].number = 0
			}
		}
		return ports
	}
	return nil
}

// version is the app that is to follow previous, nil for none.
type version struct {
	id        string
	doc       []byte
	instances int // to begin with
	target    int
}

// next makes the definition of the next app: another colour, other service ports where
// the previous app has the published ones, and the labels of the deployment. goal is how many instances
// it is to have in the end when not the target, 0 for all.
func (d *Definition) next(previous *app, initial, goal int, now time.Time) (*version, error) {
	colour := "blue"
	target := d.instances
	if previous != nil {
		if previous.colour == "blue" {
			colour = "green"
		}
		if previous.instances > 0 {
			target = previous.instances
		}
		if !now.After(previous.started) {
			// Written elsewhere by a clock that is ahead or not in UTC: what counts is that it grows.
			now = previous.started.Add(time.Second)
		}
	}
	v := &version{id: d.id + "-" + colour, target: target, instances: target}
	if previous != nil {
		goal = min(goal, target)
		v.instances = min(max(1, initial), target)
		if goal > 0 {
			v.instances = min(v.instances, goal)
		}
	}
	labels := map[string]string{
		labelAppID: d.id, labelColour: colour, labelStarted: now.UTC().Format(startedLayout),
		labelTarget: strconv.Itoa(target), labelNew: strconv.Itoa(goal), labelSource: d.source(),
	}
	doc := d.doc
	var err error
	for i, p := range d.ports {
		published, own := d.published(i, previous), 0
		if previous == nil || i >= len(previous.ports) || previous.ports[i] != published {
			own = published
		} else if i < len(d.alt) {
			own = d.alt[i]
		}
		if published > 0 {
			labels[labelPort(i)] = strconv.Itoa(published)
		}
		if doc, err = set(doc, []byte(strconv.Itoa(own)), p.path...); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{labelSource, labelNew, labelTarget, labelStarted, labelColour, labelAppID} {
		if doc, err = set(doc, str(labels[name]), "labels", name); err != nil {
			return nil, err
		}
		delete(labels, name)
	}
	for i := range d.ports {
		if v, ok := labels[labelPort(i)]; ok {
			if doc, err = set(doc, str(v), "labels", labelPort(i)); err != nil {
				return nil, err
			}
		}
	}
	if doc, err = set(doc, str(v.id), "id"); err != nil {
		return nil, err
	}
	if doc, err = set(doc, []byte(strconv.Itoa(v.instances)), "instances"); err != nil {
		return nil, err
	}
	v.doc = doc
	return v, nil
}

// published is the port that load balancers open for service port i, 0 when Marathon is
// to choose one.
func (d *Definition) published(i int, previous *app) int {
	if n, err := strconv.Atoi(d.labels[labelPort(i)]); err == nil && n > 0 {
		return n
	}
	if n := d.ports[i].number; n > 0 {
		return n
	}
	if previous == nil || i >= len(previous.ports) {
		return 0
	}
	if n, err := strconv.Atoi(previous.labels[labelPort(i)]); err == nil && n > 0 {
		return n
	}
	return previous.ports[i]
}
