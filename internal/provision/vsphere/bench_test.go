package vsphere_test

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"bridged/internal/provision"
	"bridged/internal/provision/guest"
	"bridged/internal/provision/vsim"
)

// BenchmarkCreate makes clusters on a vCenter whose clones take 2 s, power-on
// 0.5 s and boots 3 s, 25 at a time. "ideal" is what a schedule without any
// overhead of clusterctl and vCenter would take.
func BenchmarkCreate(b *testing.B) {
	for _, nodes := range []int{100} {
		b.Run(fmt.Sprintf("nodes=%d", nodes), func(b *testing.B) {
			const clone, power, boot = 2 * time.Second, 500 * time.Millisecond, 3 * time.Second
			const parallel = 25
			waves := (nodes + parallel - 1) / parallel
			ideal := time.Duration(waves)*(clone+power) + boot
			for b.Loop() {
				b.StopTimer()
				vc := vsim.Run(b, vsim.Options{Clone: clone, PowerOn: power, Boot: boot, Hosts: 8, Datastores: 4})
				o := newOperator(b, vc, blueprint(3, nodes-3, fmt.Sprintf("limits: {parallel: %d, perHost: %d, perDatastore: %d}", parallel, parallel, parallel)))
				vc.ResetCalls()
				b.StartTimer()
				started := time.Now()
				if err := o.apply(b.Context()); err != nil {
					b.Fatal(err)
				}
				took := time.Since(started)
				b.StopTimer()
				all, reads := calls(vc.CallLog())
				b.ReportMetric(took.Seconds(), "s/create")
				b.ReportMetric(ideal.Seconds(), "s/ideal")
				b.ReportMetric(float64(all-reads), "calls")
				b.ReportMetric(float64(reads), "polls+reads")
				vc.Close()
				b.StartTimer()
			}
		})
	}
}

// BenchmarkPlan plans a cluster that is as it should be, offline (parse,
// validate, render, hash and compare) and against a vCenter with VMs of others.
// CLUSTERCTL_BENCH_FOREIGN sets how many of those there are; the simulator takes
// 25 ms to make one.
func BenchmarkPlan(b *testing.B) {
	foreign := 100
	if n, err := strconv.Atoi(os.Getenv("CLUSTERCTL_BENCH_FOREIGN")); err == nil {
		foreign = n
	}
	for _, nodes := range []int{100, 1000} {
		spec := blueprint(3, nodes-3)
		b.Run(fmt.Sprintf("offline/nodes=%d", nodes), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				c, problems := provision.Load("bench.yaml", []byte(spec), manifests())
				if problems.Err() != nil {
					b.Fatal(problems)
				}
				want, err := provision.Expand(c, manifests(), guest.Render)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := provision.Diff(&provision.Inventory{Cluster: "t", Facts: provision.Facts{Image: provision.ImageFacts{Found: true}}}, want, provision.DiffOptions{}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("online/nodes=%d/foreign=%d", nodes, foreign), func(b *testing.B) {
			if nodes > 100 && os.Getenv("CLUSTERCTL_BENCH_FOREIGN") == "" {
				b.Skip("making 1000 VMs in the simulator takes a minute; set CLUSTERCTL_BENCH_FOREIGN")
			}
			vc := vsim.Run(b, vsim.Options{Foreign: foreign, FreeGiB: 1 << 20})
			o := newOperator(b, vc, blueprint(3, nodes-3, "limits: {parallel: 64, perHost: 64, perDatastore: 64}"))
			if err := o.apply(b.Context()); err != nil {
				b.Fatal(err)
			}
			vc.ResetCalls()
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				n++
				if err := o.apply(b.Context()); err != nil || !o.plan.Empty() {
					b.Fatalf("%v %s", err, text(o.plan))
				}
			}
			all, _ := calls(vc.CallLog())
			b.ReportMetric(float64(all)/float64(n), "calls/plan")
			b.ReportMetric(maxRSS()/(1<<20), "MiB-RSS-with-simulator")
		})
	}
}

// maxRSS is the most memory this process ever had, in bytes.
func maxRSS() float64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, _ := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			return kib * 1024
		}
	}
	return 0
}
