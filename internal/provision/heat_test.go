package provision

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"bridged/examples"
)

// heatProperties are the properties of the resource types we use (OpenStack
// Heat, "OpenStack Resource Types").
var heatProperties = map[string][]string{
	"OS::Neutron::Port":            {"name", "network", "mac_address", "fixed_ips"},
	"OS::Nova::Server":             {"name", "image", "flavor", "networks", "config_drive", "user_data_format", "user_data", "metadata", "scheduler_hints"},
	"OS::Nova::ServerGroup":        {"name", "policies"},
	"OS::Cinder::Volume":           {"name", "size"},
	"OS::Cinder::VolumeAttachment": {"instance_uuid", "volume_id"},
}

func TestHeat(t *testing.T) {
	w := wantOf(t, examples.Prod)
	text, err := Heat(w, asked)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := Heat(w, asked); !bytes.Equal(text, again) {
		t.Error("two exports differ")
	}
	var doc struct {
		Version    string `yaml:"heat_template_version"`
		Parameters map[string]struct {
			Type   string
			Hidden bool
		}
		Resources map[string]struct {
			Type       string
			Properties map[string]any
		}
		Outputs map[string]any
	}
	if err := yaml.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Version != heatVersion || len(doc.Outputs) != 3 {
		t.Errorf("version %q, %d outputs", doc.Version, len(doc.Outputs))
	}
	counts := map[string]int{}
	for name, r := range doc.Resources {
		counts[r.Type]++
		for p := range r.Properties {
			if !slices.Contains(heatProperties[r.Type], p) {
				t.Errorf("%s: %s has no property %s", name, r.Type, p)
			}
		}
		walk(r.Properties, func(function string, argument any) {
			switch target, _ := argument.(string); function {
			case "get_resource":
				if _, ok := doc.Resources[target]; !ok {
					t.Errorf("%s: no resource %s", name, target)
				}
			case "get_param":
				if _, ok := doc.Parameters[target]; !ok {
					t.Errorf("%s: no parameter %s", name, target)
				}
			}
		})
	}
	want := map[string]int{"OS::Neutron::Port": 53, "OS::Nova::Server": 53, "OS::Nova::ServerGroup": 1, "OS::Cinder::Volume": 53, "OS::Cinder::VolumeAttachment": 53}
	if d := cmp.Diff(want, counts); d != "" {
		t.Errorf("resources (-want +got):\n%s", d)
	}
	if !doc.Parameters["haproxyStats"].Hidden {
		t.Error("the secret is not a hidden parameter")
	}
	master := doc.Resources["master-0"].Properties
	replace := master["user_data"].(map[string]any)["str_replace"].(map[string]any)
	guest, err := asked(w, w.Nodes[0], w.Cluster.Placeholder)
	if err != nil {
		t.Fatal(err)
	}
	if replace["template"] != string(guest.UserData) {
		t.Errorf("user data is not what apply would give:\n%v", replace["template"])
	}
	if d := cmp.Diff(map[string]any{"<secret:haproxyStats#0>": map[string]any{"get_param": "haproxyStats"}}, replace["params"]); d != "" {
		t.Errorf("replacements (-want +got):\n%s", d)
	}
}

// walk calls f for every mapping of one key, which is how Heat writes functions.
func walk(v any, f func(string, any)) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if len(v) == 1 {
				f(key, value)
			}
			walk(value, f)
		}
	case []any:
		for _, item := range v {
			walk(item, f)
		}
	}
}

// TestHeatAcceptsIt runs Heat's own parser and property schemas, where Heat is installed.
func TestHeatAcceptsIt(t *testing.T) {
	python := os.Getenv("HEAT_PYTHON")
	if python == "" {
		python = "python3"
	}
	if out, err := exec.Command(python, "-c", "import heat.engine").CombinedOutput(); err != nil {
		lines := strings.Split(strings.TrimSpace(string(out)), "\n")
		t.Skipf("no OpenStack Heat for %s (pip install openstack-heat, HEAT_PYTHON): %s", python, lines[len(lines)-1])
	}
	for name, text := range map[string]string{"dev": examples.Dev, "prod": examples.Prod, "photon": examples.Photon} {
		hot, err := Heat(wantOf(t, text), asked)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(python, "testdata/validate_hot.py")
		cmd.Stdin = bytes.NewReader(hot)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}
