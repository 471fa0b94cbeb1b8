package bridge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// effect is how a key takes effect when it changes while bridged runs.
type effect int

const (
	// needsRestart costs no connection: HAProxy goes on and is adopted.
	needsRestart effect = iota
	atOnce
	newMembers  // the watcher goes on with other members
	newWatcher  // another watcher takes over when it has a whole picture
	newTemplate // haproxy.cfg is rendered again
	newServices // services are translated again
)

// effectOf says how a change of key takes effect.
func effectOf(key string) effect {
	switch key {
	case "log.level":
		return atOnce
	case "marathon.urls", "marathon.urls_file":
		return newMembers
	case "haproxy.template":
		return newTemplate
	case marathonsKey:
		return newWatcher
	case "dialect", "groups", "strict", "drop_empty", "drop_unreachable", "cert_dir", "socket_dir", templatesKey, "health", "haproxy.bind", "haproxy.check_interval", "http.bind", "allow_template_labels":
		return newServices
	}
	if strings.HasPrefix(key, "marathon_lb.") {
		return newServices
	}
	if strings.HasPrefix(key, "marathon.") {
		return newWatcher
	}
	return needsRestart
}

// reload reads the configuration and the files that it names again. What cannot be
// used changes nothing: the old configuration stays, the log and a metric say so.
func (b *Bridge) reload(ctx context.Context, why string) {
	if b.opts.Load == nil {
		return
	}
	b.opts.Notify(fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonicMicros()))
	defer b.opts.Notify("READY=1")
	changed, err := b.swap(ctx)
	// The names of files may have changed, and a broken one must be seen when it heals.
	b.watchFiles()
	if err != nil {
		b.metrics.configRefused()
		b.lastError = strings.ReplaceAll(err.Error(), "\n", "; ")
		b.log.Error("configuration refused, the old one stays", "reason", why, "err", b.lastError)
		return
	}
	b.loaded, b.lastError = time.Now(), ""
	b.metrics.configLoaded(b.loaded)
	b.log.Info("configuration read", "reason", why, "changed", changed)
}

// swap loads a configuration, and takes it over as a whole or not at all. It returns
// the keys that changed.
func (b *Bridge) swap(ctx context.Context) ([]string, error) {
	next, err := b.opts.Load()
	if err != nil {
		return nil, err
	}
	changed := changedKeys(b.config, next)
	effects := map[effect]bool{}
	var fixed []error
	for _, key := range changed {
		e := effectOf(key)
		effects[e] = true
		if e == needsRestart {
			fixed = append(fixed, next.problem(key, "cannot change while bridged runs; restart bridged (connections are kept) or change it back", nil))
		}
	}
	if len(fixed) > 0 {
		return nil, &ConfigError{Problems: fixed}
	}

	// What can fail comes first, so that nothing is changed when something fails.
	options, err := next.DiscoveryOptions()
	if err != nil {
		return nil, err
	}
	template, err := readTemplate(next)
	if err != nil {
		return nil, err
	}
	var source *source // nil: the one that runs stays
	if effects[newWatcher] {
		if source, err = b.newSource(next, options); err != nil {
			return nil, err
		}
	}
	if template != b.template {
		if err := b.proxy.SetTemplate(ctx, template); err != nil {
			return nil, templateProblem(next, err)
		}
	}
	if source == nil {
		if err := b.source.setMembers(options); err != nil {
			// The template that ran until now is one that can be used.
			return nil, errors.Join(next.Problem("marathon.urls", "cannot be followed", err), b.proxy.SetTemplate(ctx, b.template))
		}
	}

	b.config, b.template = next, template
	if source != nil {
		b.follow(ctx, source)
	}
	if effects[newServices] {
		b.retranslate(ctx, next)
	}
	if b.opts.LogLevel != nil {
		b.opts.LogLevel.Set(next.Level())
	}
	return changed, nil
}

// retranslate has all services translated again, for cfg and for what this node is now.
func (b *Bridge) retranslate(ctx context.Context, cfg *Config) {
	change := b.translator.Reconfigure(b.translateOptions(cfg), time.Now())
	if b.synced {
		change.Global = b.nodeGlobal(cfg)
		b.push(ctx, change, len(change.Backends))
	}
}

// templatesKey stands for the operator's templates among changed keys.
const templatesKey = "templates"

// changedKeys lists the keys whose values differ, in the order of Settings.
func changedKeys(a, b *Config) (keys []string) {
	for _, s := range configKeys {
		if !reflect.DeepEqual(s.field(a), s.field(b)) {
			keys = append(keys, s.Key)
		}
	}
	if !sameMarathons(a.Marathons, b.Marathons) {
		keys = append(keys, marathonsKey)
	}
	if !maps.Equal(a.templates, b.templates) {
		keys = append(keys, templatesKey)
	}
	return keys
}

// monotonicMicros is the clock that systemd compares RELOADING=1 with.
func monotonicMicros() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano() / 1000
}
