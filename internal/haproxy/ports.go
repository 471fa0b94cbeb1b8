package haproxy

import (
	"context"
	"slices"
	"time"
)

// Busy ports are tried again at a growing distance. A try binds each of them for a moment.
const (
	firstPortRetry = 30 * time.Second
	lastPortRetry  = 5 * time.Minute
)

// blocked is a section that lacks a listener because the port was busy.
type blocked struct {
	section *Section // as it was refused
	again   func()   // on the loop: forgets that it was, where it is still the wanted one
}

// blockedSections lists what waits for a port.
func (p *Proxy) blockedSections() (list []blocked) {
	for _, r := range p.rejected {
		if r.Reason != PortBusy {
			continue
		}
		if bs := p.backends[r.Section]; bs != nil && bs.refused != nil {
			refused := bs.refused
			list = append(list, blocked{&refused.Section, func() {
				if p.backends[r.Section] == bs && bs.refused == refused {
					bs.refused = nil
					p.judgeBackend(r.Section, bs)
				}
			}})
		}
		if st := p.frontends[r.Section]; st != nil && st.refused != nil {
			refused := st.refused
			list = append(list, blocked{refused, func() {
				if p.frontends[r.Section] == st && st.refused == refused {
					st.refused = nil
					p.judgeSection(p.frontends, r.Section, partFrontend, ReasonFrontend)
				}
			}})
		}
	}
	return list
}

// watchPorts sets the timer when a section waits for a port.
func (p *Proxy) watchPorts() {
	if len(p.blockedSections()) == 0 {
		p.portRetry = firstPortRetry
		return
	}
	p.after(p.portRetry, &p.timers.ports, p.tryPorts)
}

// tryPorts tries the ports that sections wait for, in the background. What can be had now
// is scheduled.
func (p *Proxy) tryPorts(context.Context) {
	list, binds := p.blockedSections(), p.binds
	p.portRetry = min(2*p.portRetry, lastPortRetry)
	p.bg(func(context.Context) func(context.Context) {
		old := indexBinds(binds)
		list = slices.DeleteFunc(list, func(b blocked) bool {
			return slices.ContainsFunc(b.section.Binds, func(bind Bind) bool { return testBind(bind, old) != nil })
		})
		return func(context.Context) {
			for _, b := range list {
				p.log.Info("a busy port is free now", "section", b.section.Name, "app", b.section.Owner)
				b.again()
			}
			p.watchPorts()
			p.schedule()
		}
	})
}
