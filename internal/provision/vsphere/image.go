package vsphere

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/nfc"
	vim "github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/ovf"
	"github.com/vmware/govmomi/sts"
	"github.com/vmware/govmomi/vapi/library"
	"github.com/vmware/govmomi/vapi/rest"
	"github.com/vmware/govmomi/vapi/vcenter"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

// partSuffix ends the name of an image while it is made. The renaming at the
// end is what makes it one: an import that was cut short is never cloned from,
// and the next run throws it away.
const partSuffix = ".part"

// importImage makes the cluster's own template out of an OVA or an item of a
// content library, with a snapshot for linked clones.
func (a *applying) importImage(ctx context.Context, s *provision.Step, say func(string)) error {
	name := s.Object
	if err := a.removePart(ctx, name); err != nil {
		return err
	}
	ctx, cancel := withTimeout(ctx, a.p.cluster.Spec.Timeouts.Clone, defaultClone)
	defer cancel()
	image := a.p.cluster.Spec.Image
	marks := provision.Marks{Cluster: a.p.cluster.Metadata.Name, Node: name, Kind: "image", Generation: 1, Hash: image.SHA256}
	at, err := a.imageSpot()
	if err != nil {
		return err
	}
	var vm ref
	if image.OVA != "" {
		vm, err = a.importOVA(ctx, image.OVA, image.SHA256, name+partSuffix, marks, at, say)
	} else {
		vm, err = a.deployItem(ctx, image.Library, name+partSuffix, marks, at, say)
	}
	if err != nil {
		return err
	}
	say("snapshot")
	snapshot, err := methods.CreateSnapshot_Task(ctx, a.p.client, &types.CreateSnapshot_Task{This: vm, Name: "base", Description: "linked clones hang on this"})
	if err == nil {
		_, err = a.p.task(ctx, snapshot.Returnval, nil)
	}
	if err != nil {
		return fmt.Errorf("snapshot the image: %w", err)
	}
	if _, err := methods.MarkAsTemplate(ctx, a.p.client, &types.MarkAsTemplate{This: vm}); err != nil && !fault.Is(err, &types.NotSupported{}) {
		return fmt.Errorf("mark the image as a template: %w", err)
	}
	rename, err := methods.Rename_Task(ctx, a.p.client, &types.Rename_Task{This: vm, NewName: name})
	if err == nil {
		_, err = a.p.task(ctx, rename.Returnval, nil)
	}
	if fault.Is(err, &types.DuplicateName{}) { // another run was faster
		return a.destroy(ctx, vm)
	}
	if err != nil {
		return fmt.Errorf("name the image: %w", err)
	}
	a.p.note(name, vm)
	return nil
}

// removePart removes what a run that was cut short left of the import. An item
// of a library carries no marks before it is deployed: there, the name within
// our folder is the mark.
func (a *applying) removePart(ctx context.Context, name string) error {
	res, err := methods.FindChild(ctx, a.p.client, &types.FindChild{
		This: *a.p.client.ServiceContent.SearchIndex, Entity: a.place.folder, Name: name + partSuffix,
	})
	if err != nil || res.Returnval == nil {
		return err
	}
	m, err := a.machine(ctx, *res.Returnval)
	if err != nil || m == nil {
		return err
	}
	if m.Power != provision.PoweredOff || m.Marks.Node != "" && m.Marks.Node != name {
		return &foreignError{name: name + partSuffix}
	}
	return a.destroy(ctx, m.ref)
}

// imageSpot is where the image is kept: the emptiest datastore that a usable host reaches.
func (a *applying) imageSpot() (spot, error) {
	n := &provision.Node{}
	if g := a.p.spec.Network; g != "" {
		n.NICs = []provision.NIC{{Network: g}}
	}
	return a.choose(n, &machine{}, provision.CloneFull)
}

func (a *applying) importOVA(ctx context.Context, where, digest, name string, marks provision.Marks, at spot, say func(string)) (ref, error) {
	file, cleanup, err := fetchOVA(ctx, where, digest, say)
	if err != nil {
		return ref{}, err
	}
	defer cleanup()
	descriptor, err := readDescriptor(file)
	if err != nil {
		return ref{}, fmt.Errorf("read the descriptor in %s: %w", where, err)
	}
	envelope, err := ovf.Unmarshal(bytes.NewReader(descriptor))
	if err != nil {
		return ref{}, fmt.Errorf("read the descriptor in %s: %w", where, err)
	}
	params := types.OvfCreateImportSpecParams{
		EntityName: name, DiskProvisioning: string(types.OvfCreateImportSpecParamsDiskProvisioningTypeThin),
		OvfManagerCommonParams: types.OvfManagerCommonParams{Locale: "US"},
	}
	if net := a.place.networks[a.p.spec.Network]; net != nil && envelope.Network != nil {
		for _, n := range envelope.Network.Networks {
			params.NetworkMapping = append(params.NetworkMapping, types.OvfNetworkMapping{Name: n.Name, Network: net.ref})
		}
	}
	pool := vim.NewResourcePool(a.p.client, at.pool)
	spec, err := ovf.NewManager(a.p.client).CreateImportSpec(ctx, string(descriptor), pool, vim.NewDatastore(a.p.client, at.datastore.ref), &params)
	if err != nil {
		return ref{}, err
	}
	if len(spec.Error) > 0 {
		return ref{}, fmt.Errorf("vCenter does not accept %s: %w", where, &taskError{fault: spec.Error[0]})
	}
	vm, ok := spec.ImportSpec.(*types.VirtualMachineImportSpec)
	if !ok {
		return ref{}, fmt.Errorf("%s holds several machines; the image has to be one", where)
	}
	// The marks come with the VM, so that it is ours from its first moment.
	values := marks.Encode()
	values[imageMark] = "imported " + where
	vm.ConfigSpec.ExtraConfig = append(vm.ConfigSpec.ExtraConfig, extraConfig(values)...)

	say("upload " + filepath.Base(where))
	lease, err := pool.ImportVApp(ctx, spec.ImportSpec, vim.NewFolder(a.p.client, a.place.folder), vim.NewHostSystem(a.p.client, at.host.ref))
	if err != nil {
		return ref{}, fmt.Errorf("import %s: %w", where, err)
	}
	info, err := lease.Wait(ctx, spec.FileItem)
	if err != nil {
		return ref{}, errors.Join(fmt.Errorf("import %s: %w", where, err), lease.Abort(ctx, nil))
	}
	updater := lease.StartUpdater(ctx, info)
	defer updater.Done()
	for _, item := range info.Items {
		if err := a.p.upload(ctx, file, item); err != nil {
			return ref{}, errors.Join(fmt.Errorf("upload %s: %w", item.Path, err), lease.Abort(ctx, nil))
		}
	}
	if err := lease.Complete(ctx); err != nil {
		return ref{}, fmt.Errorf("import %s: %w", where, err)
	}
	return info.Entity, nil
}

// upload sends one file of an OVA. It is what nfc.Lease.Upload does, but for
// that one's reports of progress, whose goroutines outlive a cancelled upload.
func (p *Provider) upload(ctx context.Context, ova string, item nfc.FileItem) error {
	f, size, err := openEntry(ova, func(name string) bool { return name == item.Path })
	if err != nil {
		return err
	}
	defer f.Close()
	param := soap.Upload{ContentLength: size, Method: http.MethodPost, Type: "application/x-vnd.vmware-streamVmdk"}
	if item.Create { // not a disk
		param.Method, param.Type, param.Headers = http.MethodPut, "", map[string]string{"Overwrite": "t"}
	}
	return p.client.Upload(ctx, f, item.URL, &param)
}

// maxDescriptor is far above what a descriptor of one machine takes.
const maxDescriptor = 4 << 20

func readDescriptor(ova string) ([]byte, error) {
	f, _, err := openEntry(ova, func(name string) bool { return strings.HasSuffix(name, ".ovf") })
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxDescriptor))
}

// entry is one file of an OVA, which is a tar archive.
type entry struct {
	io.Reader
	io.Closer
}

func openEntry(ova string, match func(name string) bool) (io.ReadCloser, int64, error) {
	f, err := os.Open(ova)
	if err != nil {
		return nil, 0, err
	}
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			err = fmt.Errorf("no such file in the archive: %w", os.ErrNotExist)
		}
		if err != nil {
			f.Close()
			return nil, 0, err
		}
		if match(h.Name) {
			return entry{r, f}, h.Size, nil
		}
	}
}

// fetchOVA gives a local file with the OVA, whose digest is as the blueprint says.
func fetchOVA(ctx context.Context, where, digest string, say func(string)) (file string, cleanup func(), err error) {
	cleanup = func() {}
	var source io.ReadCloser
	if strings.HasPrefix(where, "http://") || strings.HasPrefix(where, "https://") {
		say("download " + filepath.Base(where))
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, where, nil)
		if err != nil {
			return "", cleanup, err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", cleanup, fmt.Errorf("download the image: %w", err)
		}
		if res.StatusCode != http.StatusOK {
			res.Body.Close()
			return "", cleanup, fmt.Errorf("download the image: %s answers %s", where, res.Status)
		}
		source = res.Body
	} else {
		f, err := os.Open(where)
		if err != nil {
			return "", cleanup, fmt.Errorf("spec.image.ova: %w", err)
		}
		source, file = f, where
	}
	defer source.Close()
	sum := sha256.New()
	sink := io.Writer(sum)
	if file == "" {
		f, err := os.CreateTemp("", "clusterctl-*.ova")
		if err != nil {
			return "", cleanup, err
		}
		file = f.Name()
		cleanup = func() { _ = os.Remove(file) }
		defer f.Close()
		sink = io.MultiWriter(sum, f)
	}
	if _, err := io.Copy(sink, source); err != nil {
		cleanup()
		return "", func() {}, fmt.Errorf("read the image: %w", err)
	}
	if have := hex.EncodeToString(sum.Sum(nil)); !strings.EqualFold(have, digest) {
		cleanup()
		return "", func() {}, fmt.Errorf("spec.image.sha256: %s has %s, the blueprint says %s", where, have, digest)
	}
	return file, cleanup, nil
}

// restClient signs in to the REST side of the vCenter, which has what the SOAP
// side has not: content libraries and tags.
func (p *Provider) restClient(ctx context.Context) (*rest.Client, error) {
	c := rest.NewClient(p.client)
	s := p.session
	if s.token != "" {
		if err := c.LoginByToken(c.WithSigner(ctx, &sts.Signer{Token: s.token})); err != nil {
			return nil, fmt.Errorf("sign in to the vCenter's REST API: %w", err)
		}
		return c, nil
	}
	if err := c.Login(ctx, url.UserPassword(s.user, s.password)); err != nil {
		return nil, fmt.Errorf("sign in to the vCenter's REST API: %w", err)
	}
	return c, nil
}

// deployItem makes a VM of a content library's item, library/item.
func (a *applying) deployItem(ctx context.Context, path, name string, marks provision.Marks, at spot, say func(string)) (ref, error) {
	c, err := a.p.restClient(ctx)
	if err != nil {
		return ref{}, err
	}
	defer func() { _ = c.Logout(context.WithoutCancel(ctx)) }()
	item, err := findItem(ctx, library.NewManager(c), path)
	if err != nil {
		return ref{}, err
	}
	say("deploy " + path)
	manager := vcenter.NewManager(c)
	var vm *ref
	if item.Type == library.ItemTypeVMTX {
		vm, err = manager.DeployTemplateLibraryItem(ctx, item.ID, vcenter.DeployTemplate{
			Name:        name,
			Placement:   &vcenter.Placement{ResourcePool: at.pool.Value, Folder: a.place.folder.Value, Host: at.host.ref.Value},
			DiskStorage: &vcenter.DiskStorage{Datastore: at.datastore.ref.Value}, VMHomeStorage: &vcenter.DiskStorage{Datastore: at.datastore.ref.Value},
		})
	} else {
		vm, err = manager.DeployLibraryItem(ctx, item.ID, vcenter.Deploy{
			DeploymentSpec: vcenter.DeploymentSpec{Name: name, DefaultDatastoreID: at.datastore.ref.Value, AcceptAllEULA: true},
			Target:         vcenter.Target{ResourcePoolID: at.pool.Value, FolderID: a.place.folder.Value, HostID: at.host.ref.Value},
		})
	}
	if err != nil {
		return ref{}, fmt.Errorf("deploy %s: %w", path, err)
	}
	values := marks.Encode()
	values[imageMark] = "deployed " + path
	res, err := methods.ReconfigVM_Task(ctx, a.p.client, &types.ReconfigVM_Task{This: *vm, Spec: types.VirtualMachineConfigSpec{ExtraConfig: extraConfig(values)}})
	if err == nil {
		_, err = a.p.task(ctx, res.Returnval, nil)
	}
	return *vm, err
}

func findItem(ctx context.Context, m *library.Manager, path string) (*library.Item, error) {
	lib, name, ok := strings.Cut(path, "/")
	if !ok {
		return nil, fmt.Errorf("spec.image.library: want library/item, have %q", path)
	}
	found, err := m.GetLibraryByName(ctx, lib)
	if err != nil {
		return nil, fmt.Errorf("spec.image.library: content library %q: %w", lib, err)
	}
	items, err := m.GetLibraryItems(ctx, found.ID)
	if err != nil {
		return nil, fmt.Errorf("read content library %q: %w", lib, err)
	}
	var known []string
	for i := range items {
		if items[i].Name == name {
			return &items[i], nil
		}
		known = append(known, items[i].Name)
	}
	return nil, fmt.Errorf("spec.image.library: content library %q has no item %q; it has %s", lib, name, strings.Join(known, ", "))
}
