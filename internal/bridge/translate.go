package bridge

import (
	"time"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// Translator turns services into HAProxy's words. It does no I/O and reads no clock.
// Not for concurrent use.
type Translator struct {
	opts TranslateOptions
}

// NewTranslator returns a Translator that knows no service.
func NewTranslator(o TranslateOptions) *Translator {
	return &Translator{opts: o.withDefaults()}
}

// Apply takes in what changed and returns what HAProxy shall change. now dates rejections.
func (t *Translator) Apply(u *discovery.Update, now time.Time) haproxy.Change {
	return haproxy.Change{Received: u.Received}
}

// Rejected lists what is not served as asked, by app and index.
func (t *Translator) Rejected() []Rejection { return nil }
