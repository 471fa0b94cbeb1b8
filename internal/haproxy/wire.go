package haproxy

import (
	"context"
	"fmt"
)

// wire makes the parts that a Proxy works with.
func (p *Proxy) wire() error {
	o := &p.opts
	p.certs.store = newCertStore(o)
	if err := p.newRenderer(o.Template); err != nil {
		return err
	}
	p.proven = p.renderer
	p.files = NewFiles(FilesOptions{Config: o.ConfigFile, Logger: p.log})
	if o.Supervise {
		p.supervisor = NewSupervisor(SupervisorOptions{
			Binary: o.Binary, Config: o.ConfigFile, MasterSocket: o.MasterSocket, Socket: o.Socket, Stderr: o.Stderr,
		})
	}
	var err error
	p.reloader, err = NewReloader(ReloaderOptions{
		Socket: o.Socket, MasterSocket: o.MasterSocket, ReloadCommand: o.ReloadCommand,
		Supervisor: p.supervisor, Binary: o.Binary, Files: p.files, Logger: p.log,
	})
	return err
}

// newRenderer makes the renderer of template for the HAProxy that runs.
func (p *Proxy) newRenderer(template string) error {
	r, err := NewRenderer(template, p.caps)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTemplate, err)
	}
	r.certs = p.certs.store
	if p.proven == p.renderer {
		p.proven = r // the same text for another version
	}
	p.renderer, p.template = r, template
	return nil
}

// SetTemplate renders with another template from now on ("": the embedded one) and
// schedules the reload that this takes. One that does not parse is ErrTemplate, and
// nothing changes; one that HAProxy refuses is given up, with the reason in Status.
func (p *Proxy) SetTemplate(_ context.Context, text string) error {
	proven := p.proven
	if err := p.newRenderer(text); err != nil {
		return err
	}
	p.proven = proven
	p.fresh = true
	p.mark(part{partTemplate, ""}, ReasonTemplate)
	p.schedule()
	return nil
}
