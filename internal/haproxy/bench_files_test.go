package haproxy

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"bridged/internal/haproxy/haproxytest"
)

// BenchmarkRender renders after a change of one app, and all of it for the first time.
func BenchmarkRender(b *testing.B) {
	caps := CapabilitiesOf(Version{3, 2})
	for _, apps := range []int{10, 100, 1000, 10000} {
		cfg := bigConfig(apps, "/s")
		b.Run(fmt.Sprintf("all/apps=%d", apps), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r := newRenderer(b, "", caps)
				if _, err := r.Render(cfg); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("one/apps=%d", apps), func(b *testing.B) {
			r := newRenderer(b, "", caps)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				n++
				next := *cfg.Backends["app-1"]
				next.Servers = servers(10 + n%2)
				cfg.Backends["app-1"] = &next
				out, err := r.Render(cfg)
				if err != nil {
					b.Fatal(err)
				}
				_ = out.Bytes("g", nil)
			}
		})
	}
}

// BenchmarkReload measures our reload, from the decision to the generation seen on the new
// worker, beside HAProxy's own in the same run: the same file already in place, one line to
// the master, the same way to see the new worker. Medians; overhead is ours / HAProxy's.
func BenchmarkReload(b *testing.B) {
	for _, bin := range haproxytest.Versions(b) {
		for _, apps := range []int{10, 100, 1000} {
			b.Run(fmt.Sprintf("haproxy=%s/apps=%d", bin.Name(), apps), func(b *testing.B) { benchmarkReload(b, bin, apps) })
		}
	}
}

func benchmarkReload(b *testing.B, bin haproxytest.Binary, apps int) {
	h := haproxytest.Start(b, haproxytest.Options{Binary: bin})
	files := NewFiles(FilesOptions{Config: h.ConfigFile})
	r, err := NewReloader(ReloaderOptions{Files: files, Socket: h.DirectSocket, MasterSocket: h.MasterSocket, Binary: bin.Path})
	if err != nil {
		b.Fatal(err)
	}
	cfg := bigConfig(apps, h.DirectSocket)
	for i, port := range haproxytest.FreePorts(b, apps) {
		app := cfg.Backends[fmt.Sprintf("app-%d", i)]
		app.Binds = []Bind{{Addr: "127.0.0.1", Port: port}}
		app.ServerOptions = "" // no checks of servers that are not there
	}
	renderer := newRenderer(b, "", capsOf(b, bin))
	var old []Bind
	seq := 0
	reload := func() time.Duration {
		seq++
		next := *cfg.Backends["app-1"]
		next.Lines = []string{fmt.Sprintf("timeout client %dm", seq)}
		cfg.Backends["app-1"] = &next
		start := time.Now()
		out, err := renderer.Render(cfg)
		if err != nil {
			b.Fatal(err)
		}
		w, err := r.Reload(b.Context(), ReloadRequest{Config: cfg, Renderer: renderer, Rendered: out,
			Generation: FormatGeneration(out.Structure, seq), OldBinds: old})
		if err != nil {
			b.Fatal(err)
		}
		took := time.Since(start)
		old = w.Rendered.Binds
		return took
	}
	// HAProxy's own: what is left when rendering, preflight and saving are done.
	own := func() time.Duration {
		seq++
		out, err := renderer.Render(cfg)
		if err != nil {
			b.Fatal(err)
		}
		generation := FormatGeneration(out.Structure, seq)
		if _, err := files.Save(b.Context(), out, generation); err != nil {
			b.Fatal(err)
		}
		if _, err := masterProcs(b.Context(), h.MasterSocket); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		done := make(chan error, 1)
		go func() {
			_, err := askMaster(b.Context(), h.MasterSocket, "reload", time.Minute)
			done <- err
		}()
		for {
			if info, err := askInfo(b.Context(), h.DirectSocket); err == nil && info.Description == generation {
				break
			}
			time.Sleep(time.Millisecond)
		}
		took := time.Since(start)
		if err := <-done; err != nil {
			b.Fatal(err)
		}
		return took
	}
	settle := func() {
		if _, err := masterProcs(b.Context(), h.MasterSocket); err != nil {
			b.Fatal(err)
		}
	}
	reload()
	var ours, theirs []time.Duration
	for b.Loop() {
		settle()
		ours = append(ours, reload())
		settle()
		theirs = append(theirs, own())
	}
	median := func(d []time.Duration) float64 {
		slices.Sort(d)
		return float64(d[len(d)/2].Microseconds()) / 1000
	}
	b.ReportMetric(median(ours), "ours-ms")
	b.ReportMetric(median(theirs), "haproxy-ms")
	b.ReportMetric(median(ours)/median(theirs), "overhead")
}
