package vsim

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vmware/govmomi"
	"github.com/vmware/govmomi/find"
	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/simulator"
	_ "github.com/vmware/govmomi/vapi/simulator" // the REST endpoints: tags, content library
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// Options of a Server. The zero value is a small, instant vCenter.
type Options struct {
	Listen   string // host:port; "": a free port on 127.0.0.1
	User     string // default administrator@vsphere.local
	Password string // default vsim

	Cluster    string // name of the compute cluster; default C0
	Hosts      int    // in the cluster; default 4
	Datastores int    // LocalDS_0…; default 2
	FreeGiB    int64  // of each datastore; default 1024
	Foreign    int    // VMs that belong to somebody else

	Template        string // name of the clone source; default debian12
	TemplateRootGiB int64  // default 10
	NoSnapshot      bool   // the template has none: no linked clones
	NoMarker        bool   // the template does not say that it has cloud-init
	HotAdd          bool   // CPUs and memory of clones can grow while they run
	Instant         bool   // the template is a running, frozen VM

	Denied []string // privileges that nobody has, such as VirtualMachine.Inventory.CreateFromExisting

	SessionTimeout time.Duration // idle sessions end after it; 0: never

	// How long things take. Zero is as fast as the simulator can.
	Call        time.Duration // every API call
	Clone       time.Duration
	PowerOn     time.Duration
	PowerOff    time.Duration
	Reconfigure time.Duration
	Destroy     time.Duration
	Boot        time.Duration // from power-on to the guest's first report
	Phase       time.Duration // each phase of the first boot

	// Sick says what is wrong with the guest of the VM; nil, and a zero
	// Sickness, are healthy.
	Sick func(vm string) Sickness

	// Ready is called when a guest has finished its first boot, Gone when it is
	// powered off or removed. Both have to return at once.
	Ready func(Guest)
	Gone  func(vm string)
}

// Guest is what runs in a VM.
type Guest struct {
	Name    string
	Address netip.Addr
	Extra   map[string]string // the VM's extraConfig
}

// Marker is the extraConfig key by which an image says what it contains.
const Marker = "clusterctl.image"

// Server is a running vCenter.
type Server struct {
	URL *url.URL // of /sdk, without credentials

	User, Password string

	opt     Options
	service *simulator.Service
	model   *simulator.Model
	server  *simulator.Server
	guests  *guests
	calls   *calls

	ctx    context.Context // ends with Close; what runs in the background hangs on it
	cancel context.CancelFunc
	work   sync.WaitGroup
	world  sync.Mutex   // held while the inventory is worked on, see raceDetector
	tasks  atomic.Int64 // for references of tasks made here
	ahead  atomic.Int64 // of the real time, in nanoseconds
}

// building is held while a model is created: the simulator then writes to
// variables of its own package.
var building sync.Mutex

// Start builds the inventory and listens. Close ends it.
func Start(opt Options) (*Server, error) {
	setDefault(&opt.User, "administrator@vsphere.local")
	setDefault(&opt.Password, "vsim")
	setDefault(&opt.Cluster, "C0")
	setDefault(&opt.Hosts, 4)
	setDefault(&opt.Datastores, 2)
	setDefault(&opt.FreeGiB, 1024)
	setDefault(&opt.Template, "debian12")
	setDefault(&opt.TemplateRootGiB, 10)

	model := simulator.VPX()
	model.Host = 0
	model.ClusterHost = opt.Hosts
	model.Datastore = opt.Datastores
	model.Machine = opt.Foreign
	building.Lock()
	err := model.Create()
	building.Unlock()
	if err != nil {
		return nil, fmt.Errorf("vsim: build the inventory: %w", err)
	}
	s := &Server{User: opt.User, Password: opt.Password, opt: opt, model: model, service: model.Service}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.calls = newCalls(s)
	s.guests = newGuests(s)

	s.service.TLS = new(tls.Config)
	s.service.RegisterEndpoints = true
	s.service.Listen = &url.URL{Host: opt.Listen, User: url.UserPassword(opt.User, opt.Password)}
	if opt.Listen == "" {
		s.service.Listen.Host = "127.0.0.1:0"
	}
	if opt.SessionTimeout > 0 {
		s.registry().OptionManager().Setting = append(s.registry().OptionManager().Setting,
			&types.OptionValue{Key: "config.vmacore.soap.sessionTimeout", Value: opt.SessionTimeout.String()})
	}
	s.server = s.service.NewServer()
	inner := s.server.Config.Handler
	s.server.Config.Handler = s.calls.middleware(inner)
	s.server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that a client refuses are its business
	s.URL = &url.URL{Scheme: "https", Host: s.server.URL.Host, Path: s.server.URL.Path}

	if err := s.furnish(); err != nil {
		s.Close()
		return nil, fmt.Errorf("vsim: furnish the inventory: %w", err)
	}
	s.registry().AddHandler(s.guests)
	s.registry().Handler = s.intercept
	s.calls.reset()
	return s, nil
}

// Run starts a Server for a test and ends it with the test.
func Run(tb testing.TB, opt Options) *Server {
	tb.Helper()
	s, err := Start(opt)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Close)
	return s
}

// Close stops listening and waits for what runs in the background.
func (s *Server) Close() {
	s.cancel()
	s.server.CloseClientConnections()
	s.server.Close()
	s.work.Wait()
	s.model.Remove()
}

// Thumbprint of the server's certificate, SHA-256.
func (s *Server) Thumbprint() string { return soap.ThumbprintSHA256(s.certificate()) }

// CAFile writes the server's certificate below dir and returns the file's name.
func (s *Server) CAFile(dir string) (string, error) {
	path := filepath.Join(dir, "vsim-ca.pem")
	block := &pem.Block{Type: "CERTIFICATE", Bytes: s.certificate().Raw}
	return path, os.WriteFile(path, pem.EncodeToMemory(block), 0o644)
}

func (s *Server) certificate() *x509.Certificate { return s.server.Certificate() }

func (s *Server) registry() *simulator.Registry { return s.service.Context.Map }

// alone runs do with nobody else at the inventory, under the race detector.
func (s *Server) alone(do func()) {
	if raceDetector {
		s.world.Lock()
		defer s.world.Unlock()
	}
	do()
}

// background is a context for the simulator, for work outside a call.
func (s *Server) background() *simulator.Context {
	return &simulator.Context{Context: s.ctx, Map: s.registry(), Session: &simulator.Session{
		UserSession: types.UserSession{UserName: "vsim"}, Registry: simulator.NewRegistry(), Map: s.registry(),
	}}
}

// Advance sets the server's clock ahead, as sessions that begin after it are
// told by their sign-in.
func (s *Server) Advance(d time.Duration) { s.ahead.Add(int64(d)) }

// Client signs in as the administrator, for a test's own look at the
// inventory. Its calls count like any other.
func (s *Server) Client(ctx context.Context) (*govmomi.Client, error) {
	u := *s.URL
	u.User = url.UserPassword(s.User, s.Password)
	return govmomi.NewClient(ctx, &u, true)
}

// furnish renames the cluster, sets capacities and makes the template.
func (s *Server) furnish() error {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	client, err := s.Client(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = client.Logout(ctx) }()
	finder := find.NewFinder(client.Client)
	dc, err := finder.DefaultDatacenter(ctx)
	if err != nil {
		return err
	}
	finder.SetDatacenter(dc)
	cluster, err := finder.ClusterComputeResource(ctx, "DC0_C0")
	if err != nil {
		return err
	}
	if err := wait(ctx)(cluster.Rename(ctx, s.opt.Cluster)); err != nil {
		return err
	}
	s.furnishHosts()
	for i := range s.opt.Datastores {
		if err := s.SetFree(fmt.Sprintf("LocalDS_%d", i), s.opt.FreeGiB); err != nil {
			return err
		}
	}
	return s.makeTemplate(ctx, finder, cluster)
}

// furnishHosts names them esx1, esx2… and gives them the size of a server.
func (s *Server) furnishHosts() {
	bg := s.background()
	for i, e := range s.Entities("HostSystem") {
		host, ok := bg.Map.Get(e.Ref).(*simulator.HostSystem)
		if !ok {
			continue
		}
		bg.WithLock(host, func() {
			host.Name = fmt.Sprintf("esx%d", i+1)
			host.Summary.Config.Name = host.Name
			hardware := *host.Summary.Hardware
			hardware.MemorySize, hardware.NumCpuCores, hardware.CpuMhz = 256<<30, 32, 2400
			host.Summary.Hardware = &hardware
		})
	}
}

func (s *Server) makeTemplate(ctx context.Context, finder *find.Finder, cluster *object.ClusterComputeResource) error {
	folder, err := finder.DefaultFolder(ctx)
	if err != nil {
		return err
	}
	pool, err := cluster.ResourcePool(ctx)
	if err != nil {
		return err
	}
	network, err := finder.Network(ctx, "VM Network")
	if err != nil {
		return err
	}
	backing, err := network.EthernetCardBackingInfo(ctx)
	if err != nil {
		return err
	}
	datastore, err := finder.Datastore(ctx, "LocalDS_0")
	if err != nil {
		return err
	}

	var devices object.VirtualDeviceList
	scsi, err := devices.CreateSCSIController("pvscsi")
	if err != nil {
		return err
	}
	devices = append(devices, scsi)
	card, err := devices.CreateEthernetCard("vmxnet3", backing)
	if err != nil {
		return err
	}
	disk := devices.CreateDisk(scsi.(types.BaseVirtualController), datastore.Reference(), "")
	disk.CapacityInKB = s.opt.TemplateRootGiB << 20
	devices = append(devices, card, disk)
	changes, err := devices.ConfigSpec(types.VirtualDeviceConfigSpecOperationAdd)
	if err != nil {
		return err
	}
	spec := types.VirtualMachineConfigSpec{
		Name: s.opt.Template, GuestId: string(types.VirtualMachineGuestOsIdentifierDebian12_64Guest),
		NumCPUs: 1, MemoryMB: 1024, DeviceChange: changes,
		CpuHotAddEnabled: &s.opt.HotAdd, MemoryHotAddEnabled: &s.opt.HotAdd,
		Files: &types.VirtualMachineFileInfo{VmPathName: "[LocalDS_0]"},
	}
	if !s.opt.NoMarker {
		spec.ExtraConfig = []types.BaseOptionValue{&types.OptionValue{Key: Marker, Value: "cloud-init open-vm-tools"}}
	}
	task, err := folder.CreateVM(ctx, spec, pool, nil)
	if err != nil {
		return err
	}
	info, err := task.WaitForResult(ctx)
	if err != nil {
		return err
	}
	vm := object.NewVirtualMachine(cluster.Client(), info.Result.(types.ManagedObjectReference))
	if !s.opt.NoSnapshot {
		if err := wait(ctx)(vm.CreateSnapshot(ctx, "base", "", false, false)); err != nil {
			return err
		}
	}
	if !s.opt.Instant {
		return vm.MarkAsTemplate(ctx)
	}
	if err := wait(ctx)(vm.PowerOn(ctx)); err != nil {
		return err
	}
	bg := s.background()
	obj := bg.Map.Get(vm.Reference()).(*simulator.VirtualMachine)
	frozen := true
	bg.WithLock(obj, func() { obj.Runtime.InstantCloneFrozen = &frozen })
	return nil
}

// SetFree sets the free space of a datastore; its capacity is at least that.
func (s *Server) SetFree(datastore string, gib int64) error {
	bg := s.background()
	for _, e := range bg.Map.All("Datastore") {
		ds, ok := e.(*simulator.Datastore)
		if !ok || ds.Name != datastore {
			continue
		}
		s.alone(func() {
			bg.WithLock(ds, func() {
				ds.Summary.FreeSpace = gib << 30
				ds.Summary.Capacity = max(ds.Summary.Capacity, gib<<30)
				ds.Info.GetDatastoreInfo().FreeSpace = ds.Summary.FreeSpace
			})
		})
		return nil
	}
	return fmt.Errorf("vsim: no datastore %s", datastore)
}

// wait turns a started task into the error it ends with.
func wait(ctx context.Context) func(*object.Task, error) error {
	return func(task *object.Task, err error) error {
		if err != nil {
			return err
		}
		return task.Wait(ctx)
	}
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

var errClosed = errors.New("vsim: server is closed")

// sleep waits for d or until the server is closed.
func (s *Server) sleep(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-s.ctx.Done():
		return errClosed
	}
}
