package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"bridged/internal/discovery/marathontest"
	"bridged/internal/haproxy/haproxytest"
)

// BenchmarkDaemon measures the daemon as a process, against a Marathon of some size and
// a real HAProxy: how long from its start until HAProxy runs all tasks (ready-ms), and
// what memory it has then (rss-MB) and had at most (peak-MB).
func BenchmarkDaemon(b *testing.B) {
	exe := filepath.Join(b.TempDir(), "bridged")
	if out, err := exec.Command("go", "build", "-o", exe, ".").CombinedOutput(); err != nil {
		b.Fatalf("go build: %v\n%s", err, out)
	}
	for _, tasks := range []int{100, 1000, 10000} {
		b.Run(fmt.Sprintf("tasks=%d", tasks), func(b *testing.B) {
			const perApp = 20
			s := newSupervised(b)
			ports := haproxytest.FreePorts(b, tasks/perApp)
			for i, port := range ports {
				err := s.marathon.Deploy(marathontest.AppSpec{ID: fmt.Sprintf("/bench/app-%d", i), Instances: perApp, Ports: []marathontest.Port{{Service: int(port)}}})
				if err != nil {
					b.Fatal(err)
				}
			}
			var took time.Duration
			var rss, peak float64
			n := 0
			for b.Loop() {
				begin := time.Now()
				// Nobody listens where the tasks would be, so HAProxy must not check them.
				cmd := exec.Command(exe, "run", "--config", s.config, "--health", "marathon")
				if err := cmd.Start(); err != nil {
					b.Fatal(err)
				}
				s.ready(b)
				took += time.Since(begin)
				b.StopTimer()
				now, most := memory(b, cmd.Process.Pid)
				rss, peak = rss+now, peak+most
				n++
				cmd.Process.Signal(os.Interrupt)
				if err := cmd.Wait(); err != nil {
					b.Fatal(err)
				}
				if err := stopHAProxy(s.dir); err != nil {
					b.Fatal(err)
				}
				os.Remove(filepath.Join(s.dir, "haproxy.cfg"))
				b.StartTimer()
			}
			b.ReportMetric(float64(took.Milliseconds())/float64(n), "ready-ms")
			b.ReportMetric(rss/float64(n), "rss-MB")
			b.ReportMetric(peak/float64(n), "peak-MB")
		})
	}
}

var memoryLine = regexp.MustCompile(`(?m)^(VmRSS|VmHWM):\s+(\d+) kB$`)

// memory is what a process has in memory now and had at most, in MB.
func memory(b *testing.B, pid int) (now, most float64) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, m := range memoryLine.FindAllStringSubmatch(string(text), -1) {
		kB, err := strconv.Atoi(m[2])
		if err != nil {
			b.Fatal(err)
		}
		if m[1] == "VmRSS" {
			now = float64(kB) / 1000
		} else {
			most = float64(kB) / 1000
		}
	}
	return now, most
}
