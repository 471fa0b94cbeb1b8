package marathontest_test

import (
	"fmt"

	"bridged/internal/discovery/marathontest"
)

// A cluster without delays does everything in the call that asks for it.
func Example() {
	c := marathontest.New(marathontest.Options{Version: "1.4.0", Nodes: 3})
	if err := c.Start(); err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()

	err := c.Deploy(marathontest.AppSpec{
		ID: "/shop/cart", Instances: 2, Ports: []marathontest.Port{{Service: 8080}},
		HealthChecks: []marathontest.HealthCheck{{Path: "/health"}},
	})
	fmt.Println("deployed:", err, c.Expected())

	err = c.SetHealth(c.Tasks("/shop/cart")[0].ID, false)
	fmt.Println("one sick:", err, c.Expected())

	// The next two status updates get lost; only a comparison can tell.
	lost := c.Inject(marathontest.Fault{Kind: marathontest.LoseEvent, Event: "status_update_event", Times: 2})
	defer lost.Remove()

	err = c.Scale("/shop/cart", 0)
	fmt.Println("scaled away:", err, c.Expected())

	// Output:
	// deployed: <nil> map[8080:[127.0.0.1:31000 127.0.0.1:31001]]
	// one sick: <nil> map[8080:[127.0.0.1:31001]]
	// scaled away: <nil> map[8080:[]]
}
