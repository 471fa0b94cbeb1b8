package vsphere_test

import (
	"strings"
	"testing"

	"bridged/internal/provision/vsim"
)

func TestApplyTwiceThenDestroy(t *testing.T) {
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{Foreign: 2})
	before := vc.Dump()
	o := newOperator(t, vc, blueprint(3, 5))
	o.mustApply(ctx)
	for _, name := range []string{"t-master-0", "t-master-2", "t-slave-4"} {
		if !strings.Contains(vc.Dump(), "/vm/t/"+name+" ") {
			t.Errorf("no VM %s", name)
		}
	}
	if err := o.destroy(ctx); err != nil {
		t.Fatalf("destroy: %v", err)
	}
	if after := vc.Dump(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}
