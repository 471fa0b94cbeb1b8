package vsphere_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmware/govmomi/vapi/library"
	"github.com/vmware/govmomi/vapi/rest"
	"github.com/vmware/govmomi/vim25/soap"

	"bridged/internal/provision/vsim"
)

// ova packs the descriptor of testdata with a disk, and returns its digest.
func ova(t *testing.T) (data []byte, digest string) {
	t.Helper()
	descriptor, err := os.ReadFile("testdata/image.ovf")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range []struct {
		name string
		data []byte
	}{{"image.ovf", descriptor}, {"disk.vmdk", make([]byte, 16)}} {
		if err := w.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.data))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), fmt.Sprintf("%x", sha256.Sum256(b.Bytes()))
}

func withImage(image string) string {
	return strings.Replace(small(), "template: debian12", image, 1)
}

func TestImageFromOVA(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	data, digest := ova(t)
	file := filepath.Join(t.TempDir(), "image.ova")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = w.Write(data) }))
	defer web.Close()
	for name, where := range map[string]string{"file": file, "URL": web.URL + "/image.ova"} {
		t.Run(name, func(t *testing.T) {
			vc := vsim.Run(t, vsim.Options{})
			before := vc.Dump()
			o := newOperator(t, vc, withImage(fmt.Sprintf("ova: %q, sha256: %s", where, digest)))
			o.mustApply(ctx)
			if !strings.Contains(vc.Dump(), "/vm/t/t-image-"+digest[:12]+" power=poweredOff") {
				t.Errorf("no image in\n%s", vc.Dump())
			}
			if err := o.destroy(ctx); err != nil {
				t.Fatal(err)
			}
			if after := vc.Dump(); after != before {
				t.Errorf("after destroy (-want +got):\n%s", diff(before, after))
			}
		})
	}
	t.Run("wrong-digest", func(t *testing.T) {
		vc := vsim.Run(t, vsim.Options{})
		o := newOperator(t, vc, withImage(fmt.Sprintf("ova: %q, sha256: %064d", file, 7)))
		if err := o.apply(ctx); err == nil || !strings.Contains(err.Error(), "has "+digest+", the blueprint says 000") {
			t.Errorf("error %v", err)
		}
	})
}

// TestImageKilled cuts the import short at every call; the next run starts it anew.
func TestImageKilled(t *testing.T) {
	t.Parallel()
	data, digest := ova(t)
	file := filepath.Join(t.TempDir(), "image.ova")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		t.Fatal(err)
	}
	vc := vsim.Run(t, vsim.Options{})
	killSweep(t, vc, "", withImage(fmt.Sprintf("ova: %q, sha256: %s", file, digest)), sweepAll())
}

func TestImageFromLibrary(t *testing.T) {
	t.Parallel()
	ctx := bounded(t)
	vc := vsim.Run(t, vsim.Options{})
	makeLibrary(t, ctx, vc)
	before := vc.Dump()
	o := newOperator(t, vc, withImage("library: images/debian"))
	o.mustApply(ctx)
	if err := o.destroy(ctx); err != nil {
		t.Fatal(err)
	}
	if after := vc.Dump(); after != before {
		t.Errorf("after destroy (-want +got):\n%s", diff(before, after))
	}
	o = newOperator(t, vc, withImage("library: images/fedora"))
	if err := o.apply(ctx); err == nil || !strings.Contains(err.Error(), `no item "fedora"; it has debian`) {
		t.Errorf("error %v", err)
	}
}

// streamDisk is the beginning of an empty stream-optimized VMDK: header and
// descriptor (VMware, Virtual Disk Format 1.1).
func streamDisk() []byte {
	disk := make([]byte, 1024)
	binary.LittleEndian.PutUint32(disk, 0x564d444b)
	binary.LittleEndian.PutUint32(disk[8:], 1<<16)
	copy(disk[512:], "# Disk DescriptorFile\nversion=1\ncreateType=\"streamOptimized\"\nRW 16 SPARSE \"disk.vmdk\"\n")
	return disk
}

// makeLibrary makes a content library "images" with the item "debian".
func makeLibrary(t *testing.T, ctx context.Context, vc *vsim.Server) {
	t.Helper()
	client, err := vc.Client(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Logout(ctx)
	c := rest.NewClient(client.Client)
	if err := c.Login(ctx, url.UserPassword(vc.User, vc.Password)); err != nil {
		t.Fatal(err)
	}
	m := library.NewManager(c)
	store := ""
	for _, e := range vc.Entities("Datastore") {
		store = e.Ref.Value
	}
	id, err := m.CreateLibrary(ctx, library.Library{Name: "images", Type: "LOCAL", Storage: []library.StorageBacking{{DatastoreID: store, Type: "DATASTORE"}}})
	if err != nil {
		t.Fatal(err)
	}
	item, err := m.CreateLibraryItem(ctx, library.Item{Name: "debian", Type: library.ItemTypeOVF, LibraryID: id})
	if err != nil {
		t.Fatal(err)
	}
	session, err := m.CreateLibraryItemUpdateSession(ctx, library.Session{LibraryItemID: item})
	if err != nil {
		t.Fatal(err)
	}
	descriptor, err := os.ReadFile("testdata/image.ovf")
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"image.ovf": descriptor, "disk.vmdk": streamDisk()} {
		info, err := m.AddLibraryItemFile(ctx, session, library.UpdateFile{Name: name, SourceType: "PUSH", Size: int64(len(data))})
		if err != nil {
			t.Fatal(err)
		}
		u, err := url.Parse(info.UploadEndpoint.URI)
		if err != nil {
			t.Fatal(err)
		}
		p := soap.DefaultUpload
		p.ContentLength = int64(len(data))
		p.Headers = map[string]string{"vmware-api-session-id": session}
		if err := client.Upload(ctx, bytes.NewReader(data), u, &p); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.CompleteLibraryItemUpdateSession(ctx, session); err != nil {
		t.Fatal(err)
	}
}
