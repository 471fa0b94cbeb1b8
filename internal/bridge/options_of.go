package bridge

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"time"

	"bridged/internal/haproxy"
)

// TranslateOptionsOf is what a Translator needs to know of cfg, on no node in
// particular.
func TranslateOptionsOf(cfg *Config) TranslateOptions {
	o := TranslateOptions{
		Dialect:             cfg.Dialect,
		Groups:              cfg.Groups,
		Health:              cfg.Health,
		Strict:              cfg.Strict,
		Bind:                cfg.HAProxy.Bind,
		CheckInterval:       cfg.HAProxy.CheckInterval,
		DropEmpty:           cfg.DropEmpty,
		DropUnreachable:     cfg.DropUnreachable,
		CertDir:             cfg.CertDir,
		SocketDir:           cfg.SocketDir,
		AllowTemplateLabels: cfg.AllowTemplateLabels,
	}
	for _, s := range cfg.HTTPBind {
		if s == noneWord {
			o.HTTPBinds = []haproxy.Bind{} // not nil, which means the dialect's own
			break
		}
		// Validate has accepted it.
		if bind, err := ParseBind(s); err == nil {
			o.HTTPBinds = append(o.HTTPBinds, bind)
		}
	}
	if cfg.Dialect == DialectMarathonLB {
		o = marathonLBOptions(o, cfg)
	}
	return o
}

// GlobalOf is what of cfg the global and defaults sections are made from. api is where
// bridged answers marathon-lb's endpoints; zero: nowhere.
func GlobalOf(cfg *Config, api netip.AddrPort) *haproxy.Global {
	g := &haproxy.Global{
		Socket:        cfg.HAProxy.Socket,
		OldWorkers:    cfg.HAProxy.MaxOldWorkers,
		CheckInterval: haproxyTime(cfg.HAProxy.CheckInterval),
		HardStopAfter: hardStop,
	}
	if text := cfg.templates["HEAD"]; text != "" {
		// In place of what is kept of the operator's file: it is the operator's file.
		h := ReadHead(text)
		g.KeptGlobal, g.KeptDefaults, g.KeptSections = h.Global, h.Defaults, h.sections(api)
	}
	return g
}

// nodeGlobal is GlobalOf for the HAProxy of this node: where we are not root, HAProxy
// opens the stats socket to our group, or the next reload would lock us out. A mode that
// the operator's own file gives the socket comes first.
func (b *Bridge) nodeGlobal(cfg *Config) *haproxy.Global {
	api := netip.AddrPort{}
	if cfg.MarathonLB.Endpoints {
		api = b.apiAddr()
	}
	g := GlobalOf(cfg, api)
	for _, left := range ReadHead(cfg.templates["HEAD"]).Warnings {
		b.log.Warn("line of a template is left out", "reason", left)
	}
	if os.Geteuid() != 0 && !cfg.HAProxy.Supervise {
		g.SocketMode = fmt.Sprintf("mode 660 gid %d", os.Getegid())
	}
	return g
}

// apiAddr is where HAProxy reaches our listener.
func (b *Bridge) apiAddr() netip.AddrPort {
	a, ok := b.listener.Addr().(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	at := a.AddrPort()
	if at.Addr().IsUnspecified() {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), at.Port())
	}
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// HasExporter reports whether the HAProxy at binary is built with its Prometheus exporter.
// One that cannot be asked has none.
func HasExporter(ctx context.Context, binary string) bool {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "-vv").Output()
	if err != nil {
		return false
	}
	for line := range bytes.Lines(out) {
		// From 2.4 on "Available services : prometheus-exporter", before it a line of its own.
		if text := strings.ToLower(string(line)); strings.Contains(text, "prometheus") && strings.Contains(text, "exporter") {
			return true
		}
	}
	return false
}
