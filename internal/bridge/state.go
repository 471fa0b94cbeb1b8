package bridge

import (
	"time"

	"bridged/internal/discovery"
	"bridged/internal/haproxy"
)

// State is what /api/state answers: where the bridge stands at one moment.
type State struct {
	Version string    `json:"version"`
	Started time.Time `json:"started"`

	// Ready is what /readyz says; NotReady are the reasons against it.
	Ready    bool     `json:"ready"`
	NotReady []string `json:"notReady,omitempty"`

	Config   ConfigState      `json:"config"`
	Marathon discovery.Status `json:"marathon"`
	// Marathons are the single ones where there are several; Marathon is then all of them.
	Marathons []discovery.Status `json:"marathons,omitempty"`
	HAProxy   haproxy.Status     `json:"haproxy"`

	// Rejected is what is not served as its app asks, by app and index; Refused is what
	// HAProxy itself did not take.
	Rejected []Rejection        `json:"rejected,omitempty"`
	Refused  []haproxy.Rejected `json:"refused,omitempty"`

	// Services by app and index, with the servers that HAProxy shall have. Left out
	// where only health is asked for.
	Services []ServiceView `json:"services,omitempty"`
}

// ServiceView is a ServiceState in the words of /api/state.
type ServiceView struct {
	App     string       `json:"app"`
	Index   int          `json:"index"`
	Port    uint16       `json:"port,omitempty"`  // service port in force
	Proxy   string       `json:"proxy,omitempty"` // "" when it is not served
	Mode    string       `json:"mode,omitempty"`
	Tasks   int          `json:"tasks"`
	Servers []ServerView `json:"servers,omitempty"`
	Vhosts  []string     `json:"vhosts,omitempty"`
}

// ServerView is a task as HAProxy knows it.
type ServerView struct {
	Name  string `json:"name"`
	Addr  string `json:"addr"`
	State string `json:"state"` // ready, drain or maint
}

func viewsOf(services []ServiceState) []ServiceView {
	views := make([]ServiceView, len(services))
	for i, s := range services {
		v := ServiceView{App: s.App, Index: s.Index, Port: s.Port, Proxy: s.Proxy, Mode: string(s.Mode), Tasks: s.Tasks, Vhosts: s.Vhosts}
		for _, srv := range s.Servers {
			v.Servers = append(v.Servers, ServerView{Name: srv.Name, Addr: srv.Addr.String(), State: stateWord(srv.State)})
		}
		views[i] = v
	}
	return views
}

func stateWord(s haproxy.State) string {
	switch s {
	case haproxy.Drain:
		return "drain"
	case haproxy.Maint:
		return "maint"
	}
	return "ready"
}

// ConfigState says which configuration runs.
type ConfigState struct {
	File   string    `json:"file,omitempty"` // "" when no file was read
	Loaded time.Time `json:"loaded"`         // when the running configuration was read

	// LastError is why a later configuration was refused, "" when none was.
	LastError string   `json:"lastError,omitempty"`
	Marathons []string `json:"marathons"`
}

// notReady lists what keeps the bridge from being ready: not synced with Marathon, or
// HAProxy not known to run what follows from it.
func notReady(m []discovery.Status, h haproxy.Status) (reasons []string) {
	reasons = marathonTrouble(m)
	if !h.Connected {
		reason := "HAProxy is not connected"
		if h.LastError != "" {
			reason += ": " + h.LastError
		}
		return append(reasons, reason)
	}
	if !h.Matches {
		reason := "HAProxy does not run what is wanted yet"
		if h.LastError != "" {
			reason += ": " + h.LastError
		}
		reasons = append(reasons, reason)
	}
	return reasons
}
