package vsphere

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"

	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

// advice is a vSphere fault in an operator's words.
type advice struct {
	what   string // instead of vCenter's message; "": that
	remedy string
}

// advices by the name of the fault. What is not in it is shown with vCenter's
// own message; a second apply is then all that can be advised.
var advices = map[string]advice{
	// sign-in and rights
	"InvalidLogin":     {"user name or password is wrong", "check spec.provider.vsphere.auth or GOVC_USERNAME and GOVC_PASSWORD"},
	"NotAuthenticated": {"the session has ended and could not be renewed", "run the command again; if it happens at once, check whether vCenter limits sessions per user"},
	"NoPermission":     {"", "give the user's role that privilege on that object, or on a parent with propagation"},

	// space and capacity
	"NoDiskSpace":                         {"", "free space on the datastore, or name another in spec.provider.vsphere.datastores"},
	"InsufficientResourcesFault":          {"the hosts have not enough CPU or memory left", "free capacity, lower the groups' sizes or reservations, or name more hosts"},
	"InsufficientCpuResourcesFault":       {"the resource pool has not enough CPU left for the reservation", "lower spec.groups[].reservations.cpu or raise the pool's limit"},
	"InsufficientMemoryResourcesFault":    {"the resource pool has not enough memory left for the reservation", "lower spec.groups[].reservations.memory or raise the pool's limit"},
	"InsufficientHostCapacityFault":       {"no host has the capacity for it", "free capacity or lower the group's size"},
	"InsufficientHostCpuCapacityFault":    {"the host has not enough CPU left", "free capacity, lower the group's size or name more hosts"},
	"InsufficientHostMemoryCapacityFault": {"the host has not enough memory left", "free capacity, lower the group's size or name more hosts"},
	"InsufficientFailoverResourcesFault":  {"vSphere HA admission control refuses it: the capacity kept for failover would be used", "add a host, or change the cluster's admission control"},
	"InsufficientStorageSpace":            {"the datastore cluster has not enough space left", "add a datastore to it or name another in spec.provider.vsphere.pod"},
	"NotEnoughCpus":                       {"the host has fewer CPUs than the VM asks for", "lower spec.groups[].cpus"},
	"NotEnoughLicenses":                   {"the vCenter's licences do not allow it", "check the licences of the hosts"},
	"NumVirtualCpusNotSupported":          {"the VM's hardware version does not allow so many CPUs", "lower spec.groups[].cpus or upgrade the image's hardware version"},
	"MemorySizeNotSupported":              {"the VM's hardware version does not allow so much memory", "lower spec.groups[].memory or upgrade the image's hardware version"},
	"FileTooLarge":                        {"the datastore does not hold files so large", "make the disk smaller or name another datastore"},

	// placement and rules
	"RuleViolation":               {"a placement rule forbids it", "usable hosts are fewer than the group has nodes: add hosts or set placement.antiAffinity to preferred"},
	"VmHostAffinityRuleViolation": {"a VM/host rule forbids it", "check the hosts that the group may use"},
	"NoCompatibleHost":            {"no host can run the VM", "check that the hosts have the network, the datastore and the CPU features it needs"},
	"NoActiveHostInCluster":       {"no host of the cluster is connected", "connect a host"},
	"InvalidHostState":            {"the host is not in a state to do that", "check whether it is in maintenance mode or disconnected"},
	"HostNotConnected":            {"the host is not connected to vCenter", "reconnect it, or take it out of the blueprint"},
	"HostNotReachable":            {"vCenter does not reach the host", "check the host and its network"},
	"HostCommunication":           {"vCenter lost the host while it worked", "check the host; then run apply again"},
	"CannotAccessNetwork":         {"the host does not have the network", "add the port group to every host of the cluster"},
	"CannotAccessVmDevice":        {"the host does not reach a device of the VM", "check that the hosts have the network and the datastore"},
	"InaccessibleDatastore":       {"the datastore cannot be reached", "check the storage, or name another datastore"},
	"DatastoreNotWritableOnHost":  {"the host may not write to the datastore", "check how it is mounted"},
	"InvalidDatastore":            {"the datastore does not exist or cannot be used", "check spec.provider.vsphere.datastores"},
	"InvalidFolder":               {"the folder cannot hold it", "check spec.provider.vsphere.folder: it has to be a VM folder"},

	// names and objects
	"DuplicateName":         {"", "rename or move the other object, or choose another cluster name"},
	"AlreadyExists":         {"it exists already", ""},
	"InvalidName":           {"vCenter does not accept the name", "choose another cluster or group name"},
	"ManagedObjectNotFound": {"it exists no more: somebody else removed it", ""},
	"FileNotFound":          {"a file of the image is missing on the datastore", "check the image; clone one VM from it by hand"},
	"FileLocked":            {"a disk of the image is in use", "power the image off, or clone from a snapshot"},
	"FileAlreadyExists":     {"the datastore has a folder of that VM's name, left by another VM", "remove it in the datastore browser if nobody needs it"},

	// states
	"InvalidPowerState":           {"", ""},
	"InvalidState":                {"the object is not in a state to do that", "look at its recent tasks in the vSphere client"},
	"TaskInProgress":              {"another task works on it", "wait for that task to end"},
	"ResourceInUse":               {"something still uses it", "look for VMs or rules that name it"},
	"ConcurrentAccess":            {"somebody else keeps changing it at the same time", ""},
	"RequestCanceled":             {"somebody cancelled the task in vCenter", ""},
	"Timedout":                    {"vCenter gave up waiting", "check the load of vCenter and host"},
	"ToolsUnavailable":            {"VMware Tools do not run in the guest", "check that the image has open-vm-tools"},
	"CpuHotPlugNotSupported":      {"CPUs cannot be added while it runs", "switch CPU hot-add on in the image, or let apply restart the node"},
	"MemoryHotPlugNotSupported":   {"memory cannot be added while it runs", "switch memory hot-add on in the image, or let apply restart the node"},
	"InvalidDeviceSpec":           {"a device cannot be as asked", "disks never shrink: make them no smaller than they are; check spec.groups[].disks"},
	"InvalidController":           {"the image has no controller for the disk", "give the image a SCSI controller"},
	"InvalidArgument":             {"", "the image's snapshot or the resource pool may have been removed: run validate --online"},
	"SnapshotFault":               {"", "look at the image's snapshots in the vSphere client"},
	"GenericVmConfigFault":        {"", "look at the VM's events in the vSphere client"},
	"MissingPowerOnConfiguration": {"the VM lacks configuration to be powered on", "look at its vApp options"},

	// limits of the server
	"MethodNotFound":    {"this vCenter does not know the operation", "instant clones need vSphere 6.7: set spec.image.clone to linked"},
	"NotSupported":      {"this vCenter or host does not support it", "check spec.image.clone and the vSphere version"},
	"RestrictedVersion": {"the licence of the host forbids it", "check the host's licence"},
	"LicenseRestricted": {"the licence forbids it", "check the host's licence"},
	"SystemError":       {"", "look at the events of the object and the host in the vSphere client"},
	"VAppPropertyFault": {"the image's vApp properties are wrong", "remove them from the image"},
}

// faultOf finds the vSphere fault that an error was made of; nil: there is none.
func faultOf(err error) types.BaseMethodFault {
	for ; err != nil; err = errors.Unwrap(err) {
		switch {
		case soap.IsSoapFault(err):
			if f, ok := soap.ToSoapFault(err).VimFault().(types.BaseMethodFault); ok {
				return f
			}
			// As decoded it may be a value, whose pointer is the fault.
			v := reflect.ValueOf(soap.ToSoapFault(err).VimFault())
			if !v.IsValid() {
				return nil
			}
			p := reflect.New(v.Type())
			p.Elem().Set(v)
			f, _ := p.Interface().(types.BaseMethodFault)
			return f
		case soap.IsVimFault(err):
			return soap.ToVimFault(err)
		}
		if t, ok := err.(*taskError); ok {
			return t.Fault()
		}
	}
	return nil
}

// faultName is the fault's type: NoDiskSpace.
func faultName(f types.BaseMethodFault) string {
	t := reflect.TypeOf(f)
	if t == nil {
		return ""
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Name()
}

// detail adds what a fault says besides its name.
func (p *Provider) detail(f types.BaseMethodFault) string {
	switch f := f.(type) {
	case *types.NoPermission:
		where := "the vCenter"
		if f.Object != nil {
			where = f.Object.Type + " " + p.nameOf(*f.Object)
		}
		return fmt.Sprintf("privilege %s is missing on %s", f.PrivilegeId, where)
	case *types.NoDiskSpace:
		return fmt.Sprintf("datastore %s is full", f.Datastore)
	case *types.DuplicateName:
		return fmt.Sprintf("the name %s is taken by a %s", f.Name, f.Object.Type)
	case *types.InvalidPowerState:
		return fmt.Sprintf("it is %s, and has to be %s", f.ExistingState, f.RequestedState)
	case *types.InvalidArgument:
		return "vCenter does not accept " + f.InvalidProperty
	case *types.SystemError:
		return "vCenter failed: " + f.Reason
	case *types.InsufficientResourcesFault:
		return advices["InsufficientResourcesFault"].what
	}
	return ""
}

// nameOf is the name of an object that was read before, or its reference.
func (p *Provider) nameOf(o ref) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, vm := range p.made {
		if vm == o {
			return name
		}
	}
	if pl := p.place; pl != nil {
		switch o {
		case pl.folder:
			return pl.folderPath
		case pl.parent:
			return pl.parentPath
		case pl.pool:
			return pl.poolPath
		case pl.image:
			return pl.imagePath
		case pl.datacenter:
			return pl.dcName
		}
		for _, c := range pl.computes {
			if c.ref == o {
				return c.name
			}
		}
		for _, d := range pl.datastores {
			if d.ref == o {
				return d.facts.Name
			}
		}
		for name, n := range pl.networks {
			if n.ref == o {
				return name
			}
		}
	}
	return o.Value
}

// translate says what went wrong and what to do about it.
func (p *Provider) translate(err error) (what, remedy string) {
	var foreign *foreignError
	var notEmpty *notEmptyError
	var guest *guestError
	switch {
	case errors.As(err, &foreign):
		return "", "rename or move that VM, or choose another cluster name; clusterctl does not touch it"
	case errors.As(err, &notEmpty):
		return "", "look who put that there and move it; then run the command again"
	case errors.As(err, &guest):
		if guest.stalled > 0 && guest.report.Phase == provision.PhaseNone {
			return "", "open its console: does it boot, and has the image cloud-init and open-vm-tools?"
		}
		return "", "open its console and read /var/log/cloud-init-output.log; replace the node when the cause is gone"
	case errors.Is(err, errNoHost):
		return "", "check maintenance mode, placement.hosts, and that the hosts have the port group and a datastore"
	case errors.Is(err, context.DeadlineExceeded):
		return "it took too long", "look at the tasks in the vSphere client; raise spec.timeouts if it is merely slow"
	case broken(unwrapAll(err)):
		return "the connection to vCenter broke", ""
	}
	f := faultOf(err)
	if f == nil {
		return "", ""
	}
	a := advices[faultName(f)]
	if detail := p.detail(f); detail != "" {
		a.what = detail
	}
	return a.what, a.remedy
}

// unwrapAll is the innermost error of a chain that broken understands.
func unwrapAll(err error) error {
	for {
		if broken(err) {
			return err
		}
		next := errors.Unwrap(err)
		if next == nil {
			return err
		}
		err = next
	}
}

// stepError is a failed step as the operator sees it.
func (p *Provider) stepError(s *provision.Step, err error) error {
	if errors.Is(err, context.Canceled) {
		return &provision.StepError{Step: s.ID, Node: s.Node, Err: err}
	}
	what, remedy := p.translate(err)
	if what != "" {
		err = &explained{what: what, err: err}
	}
	return &provision.StepError{Step: s.ID, Node: s.Node, Remedy: remedy, Err: err}
}

// explain is stepError for what is no step.
func (p *Provider) explain(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	what, remedy := p.translate(err)
	if what == "" && remedy == "" {
		return err
	}
	var parts []string
	for _, s := range []string{context_(err), what, remedy} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return &explained{what: strings.Join(parts, "; "), err: err, alone: true}
}

// context_ is what was being done when the error came: the text before it.
func context_(err error) string {
	text := err.Error()
	for e := errors.Unwrap(err); e != nil; e = errors.Unwrap(e) {
		if before, ok := strings.CutSuffix(text, ": "+e.Error()); ok && faultOf(e) != nil && errors.Unwrap(e) == nil {
			return before
		}
	}
	return ""
}

// explained is an error told in words of ours; the cause stays in the chain.
type explained struct {
	what  string
	err   error
	alone bool // what says all
}

func (e *explained) Error() string {
	if e.alone {
		return e.what
	}
	text := e.err.Error()
	if f := faultOf(e.err); f != nil {
		return fmt.Sprintf("%s (%s)", e.what, faultName(f))
	}
	return e.what + ": " + text
}

func (e *explained) Unwrap() error { return e.err }
