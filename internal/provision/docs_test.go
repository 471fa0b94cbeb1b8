package provision

import (
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestEveryKeyIsDocumented: the reference names every key of the blueprint.
func TestEveryKeyIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/blueprint.md")
	if err != nil {
		t.Fatal(err)
	}
	var visit func(path string, typ reflect.Type)
	visit = func(path string, typ reflect.Type) {
		for typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct || typ.PkgPath() != reflect.TypeFor[Cluster]().PkgPath() {
			return
		}
		for _, f := range fieldsOf(typ) {
			if !strings.Contains(string(text), f.name) {
				t.Errorf("%s is not in docs/blueprint.md", join(path, f.name))
			}
			visit(join(path, f.name), typ.Field(f.index).Type)
		}
	}
	visit("", reflect.TypeFor[Cluster]())
}
