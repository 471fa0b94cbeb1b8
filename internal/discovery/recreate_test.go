package discovery

import (
	"testing"
	"testing/synctest"
	"time"

	"bridged/internal/discovery/marathontest"
)

// TestAppCreatedAnew: an app that comes back under its id a moment after it was deleted is
// there at once, although Marathon has just said that it has no such app.
func TestAppCreatedAnew(t *testing.T) {
	for _, version := range testVersions {
		t.Run(version, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, marathontest.Options{Version: version}, Options{}).run()
				defer w.close()
				// Without a service port of its own: what is posted does not tell the port.
				spec := marathontest.AppSpec{ID: "/shop/cart", Instances: 2, Ports: []marathontest.Port{{}}}
				if err := w.cluster.Deploy(spec); err != nil {
					t.Fatal(err)
				}
				w.settle(time.Second)
				w.matches("deployed")
				for range 3 {
					if err := w.cluster.Delete(spec.ID); err != nil {
						t.Fatal(err)
					}
					w.settle(time.Second)
					w.matches("deleted")
					if err := w.cluster.Deploy(spec); err != nil {
						t.Fatal(err)
					}
					w.settle(time.Second)
					w.matches("created anew")
				}
			})
		})
	}
}
