package provision

import "slices"

// Plan is what has to be done, as data. A plan without changes may still have
// a stage that waits for nodes which are not ready yet.
type Plan struct {
	Cluster string   `json:"cluster"`
	Server  string   `json:"server,omitempty"`
	Changes []Change `json:"changes"`
	Stages  []Stage  `json:"stages"`
	Notes   []string `json:"notes,omitempty"` // what an operator should know and nobody has to do

	// StaleLease: a dead run left its lease behind; taking the lease clears it away.
	StaleLease bool `json:"staleLease,omitempty"`
}

// Empty reports whether nothing would be changed.
func (p *Plan) Empty() bool { return len(p.Changes) == 0 }

// Change is what happens to one object, for people: one line of a plan.
type Change struct {
	Action Action   `json:"action"`
	Kind   string   `json:"kind"` // vm, folder, pool, image, rule
	Name   string   `json:"name"`
	What   string   `json:"what,omitempty"` // "2 CPU, 8GiB, 10.20.0.11, zookeeper mesos-master marathon"
	Why    []string `json:"why"`
}

// Action classifies a Change.
type Action string

// Actions.
const (
	ActionCreate  Action = "create"
	ActionChange  Action = "change"  // reconfigured while it runs
	ActionRestart Action = "restart" // reconfigured while it is off, or rebooted
	ActionReplace Action = "replace" // removed and created again
	ActionRemove  Action = "remove"
	ActionRepair  Action = "repair" // put back to what the blueprint says
)

// Stage is a list of steps that may run at once; steps of one node keep their
// order. The next stage starts when all of it is done. A stage's steps are
// either all for the provider or all for the guests (Kind.Guest).
type Stage struct {
	Name  string `json:"name"`
	Steps []Step `json:"steps"`
}

// Guest reports whether the stage is done by asking the cluster's services
// rather than the provider.
func (s *Stage) Guest() bool { return len(s.Steps) > 0 && s.Steps[0].Kind.Guest() }

// Destructive reports whether the stage removes something or stops a machine.
func (s *Stage) Destructive() bool {
	for i := range s.Steps {
		switch s.Steps[i].Kind {
		case StepDelete, StepRestart, StepRemoveRule, StepRemovePool, StepRemoveFolder:
			return true
		}
	}
	return false
}

// Step is one thing to do. Which of the pointers are set follows from Kind.
type Step struct {
	ID     string   `json:"id"` // kind and object: "create dev-master-0"; unique in its stage
	Kind   StepKind `json:"kind"`
	Node   string   `json:"node,omitempty"`   // VM name
	Object string   `json:"object,omitempty"` // name of a folder, pool, image or rule
	Reason string   `json:"reason"`

	Want *Node    `json:"-"` // create, power, reconfigure, restart, wait, drain, undrain
	Have *Machine `json:"-"` // the machine it is done to, as the inventory showed it; nil for create
	Rule *Rule    `json:"rule,omitempty"`
	Gate *Gate    `json:"gate,omitempty"`
}

// StepKind is what a step does.
type StepKind string

// Steps that a provider does.
const (
	StepFolder StepKind = "folder" // make the cluster's folder
	StepPool   StepKind = "pool"   // make the cluster's resource pool
	StepImage  StepKind = "image"  // import the OVA or library item as a template, with its mark and a snapshot
	// StepCreate makes the VM with everything in Want (hardware, marks, guest
	// data, placement) and powers it on. A VM of that name with our marks is
	// success; one without them is an error.
	StepCreate StepKind = "create"
	StepPower  StepKind = "power" // power on
	// StepReconfigure makes name, CPUs, memory, disk sizes, reservations, NIC
	// networks and marks of Have equal to Want, in whatever power state it is.
	StepReconfigure StepKind = "reconfigure"
	// StepRestart shuts down politely (hard after the timeout), does what
	// StepReconfigure does, writes the guest data where Want.UserData is not
	// nil, and powers on.
	StepRestart StepKind = "restart"
	// StepWait waits until the node reports PhaseReady with Want.Generation;
	// a PhaseFailed report or a timeout is an error with the node's last words.
	StepWait StepKind = "wait"
	// StepDelete shuts down politely unless the guest never reported, then
	// destroys the VM with its disks. Only a VM that carries our marks and is
	// the one in Have.Ref (the one called Have.Name where Ref is empty, because
	// it was made by the same plan) is touched; one that is gone is success.
	StepDelete       StepKind = "delete"
	StepPutRule      StepKind = "put-rule" // create the rule or make its members equal
	StepRemoveRule   StepKind = "remove-rule"
	StepRemovePool   StepKind = "remove-pool"   // only when empty
	StepRemoveFolder StepKind = "remove-folder" // only when empty but for the lease
)

// Steps that are done by asking the services inside.
const (
	StepDrain   StepKind = "drain"   // move tasks off the slave Want.Name
	StepUndrain StepKind = "undrain" // let the slave take tasks again
	StepGate    StepKind = "gate"    // wait until Gate holds
)

// Guest reports whether a step of this kind talks to services rather than the provider.
func (k StepKind) Guest() bool {
	switch k {
	case StepDrain, StepUndrain, StepGate:
		return true
	}
	return false
}

// Gate is a condition on the running cluster.
type Gate struct {
	// Nodes that must be ready by their own report.
	Nodes []string `json:"nodes,omitempty"`
	// Services whose own view must be whole: ZooKeeper ensemble with one
	// leader and all followers synced, one Mesos leader known to all masters,
	// Marathon with a leader, bridged ready.
	Services []Role `json:"services,omitempty"`
	// Without names the node that is about to be changed: the gate holds when
	// the rest would still have its quorum.
	Without string `json:"without,omitempty"`
}

// SameChanges reports whether two plans change the same objects in the same
// way. The folder does not count: taking the lease makes it.
func (p *Plan) SameChanges(o *Plan) bool {
	key := func(p *Plan) []string {
		var keys []string
		for i := range p.Changes {
			if c := &p.Changes[i]; c.Kind != "folder" {
				keys = append(keys, string(c.Action)+" "+c.Kind+" "+c.Name)
			}
		}
		return keys
	}
	return slices.Equal(key(p), key(o))
}

// TakesDownQuorum reports whether a member of a quorum is stopped on the way.
func (p *Plan) TakesDownQuorum() bool {
	return slices.ContainsFunc(p.Stages, func(stage Stage) bool {
		return slices.ContainsFunc(stage.Steps, func(s Step) bool {
			return (s.Kind == StepDelete || s.Kind == StepRestart) && s.Want != nil && s.Want.Quorum()
		})
	})
}
