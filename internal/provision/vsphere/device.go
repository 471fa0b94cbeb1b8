package vsphere

import (
	"fmt"
	"reflect"
	"slices"

	vim "github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/types"

	"bridged/internal/provision"
)

// backing connects a network card to the network.
func (n *network) backing() types.BaseVirtualDeviceBackingInfo {
	switch {
	case n.distributed:
		return &types.VirtualEthernetCardDistributedVirtualPortBackingInfo{
			Port: types.DistributedVirtualSwitchPortConnection{PortgroupKey: n.portgroup, SwitchUuid: n.switchUUID},
		}
	case n.opaqueID != "":
		return &types.VirtualEthernetCardOpaqueNetworkBackingInfo{OpaqueNetworkId: n.opaqueID, OpaqueNetworkType: n.opaqueType}
	}
	return &types.VirtualEthernetCardNetworkBackingInfo{
		VirtualDeviceDeviceBackingInfo: types.VirtualDeviceDeviceBackingInfo{DeviceName: n.name},
	}
}

func (n *network) backingKey() string { return backingKey(n.backing()) }

// backingKey is equal for backings by the same network.
func backingKey(b types.BaseVirtualDeviceBackingInfo) string {
	switch b := b.(type) {
	case *types.VirtualEthernetCardDistributedVirtualPortBackingInfo:
		return "dvpg " + b.Port.PortgroupKey
	case *types.VirtualEthernetCardOpaqueNetworkBackingInfo:
		return "opaque " + b.OpaqueNetworkId
	case *types.VirtualEthernetCardNetworkBackingInfo:
		return "network " + b.DeviceName
	}
	return ""
}

// clone of a device that can be edited without touching the original's fields
// (what pointers in it lead to is shared).
func cloneDevice(d types.BaseVirtualDevice) types.BaseVirtualDevice {
	v := reflect.ValueOf(d)
	c := reflect.New(v.Type().Elem())
	c.Elem().Set(v.Elem())
	return c.Interface().(types.BaseVirtualDevice)
}

func change(op types.VirtualDeviceConfigSpecOperation, d types.BaseVirtualDevice) *types.VirtualDeviceConfigSpec {
	return &types.VirtualDeviceConfigSpec{Operation: op, Device: d}
}

// nicChanges makes the cards of a VM those that are wanted: on their networks,
// with their MAC addresses, and no others.
func (pl *place) nicChanges(have vim.VirtualDeviceList, want []provision.NIC) ([]types.BaseVirtualDeviceConfigSpec, error) {
	cards := have.SelectByType((*types.VirtualEthernetCard)(nil))
	var changes []types.BaseVirtualDeviceConfigSpec
	for i, nic := range want {
		net := pl.networks[nic.Network]
		if net == nil {
			return nil, fmt.Errorf("network %q was not found", nic.Network)
		}
		op := types.VirtualDeviceConfigSpecOperationEdit
		var device types.BaseVirtualDevice
		if i < len(cards) {
			old := cards[i].(types.BaseVirtualEthernetCard).GetVirtualEthernetCard()
			if backingKey(old.Backing) == net.backingKey() && equalMAC(old.MacAddress, nic.MAC) {
				continue
			}
			device = cloneDevice(cards[i])
		} else {
			op = types.VirtualDeviceConfigSpecOperationAdd
			device = &types.VirtualVmxnet3{}
			device.GetVirtualDevice().Key = int32(-200 - i)
		}
		card := device.(types.BaseVirtualEthernetCard).GetVirtualEthernetCard()
		card.Backing = net.backing()
		card.DeviceInfo = nil
		card.AddressType, card.MacAddress = string(types.VirtualEthernetCardMacTypeManual), nic.MAC
		if nic.MAC == "" {
			card.AddressType = string(types.VirtualEthernetCardMacTypeGenerated)
		}
		card.Connectable = &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true, AllowGuestControl: true}
		changes = append(changes, change(op, device))
	}
	for i := len(want); i < len(cards); i++ {
		changes = append(changes, change(types.VirtualDeviceConfigSpecOperationRemove, cards[i]))
	}
	return changes, nil
}

func equalMAC(have, want string) bool {
	return want == "" || hexDigits(have) == hexDigits(want)
}

// disks of the list, in device order.
func disks(have vim.VirtualDeviceList) []*types.VirtualDisk {
	var list []*types.VirtualDisk
	for _, d := range have {
		if disk, ok := d.(*types.VirtualDisk); ok {
			list = append(list, disk)
		}
	}
	return list
}

// diskChanges grows the root disk and makes the data disks, which come after
// the image's own. Disks never shrink.
func diskChanges(have vim.VirtualDeviceList, imageDisks int, rootMiB int64, data []provision.NodeDisk) ([]types.BaseVirtualDeviceConfigSpec, error) {
	list := disks(have)
	if len(list) == 0 {
		return nil, fmt.Errorf("the image has no disk")
	}
	var changes []types.BaseVirtualDeviceConfigSpec
	grow := func(d *types.VirtualDisk, mib int64) {
		if d.CapacityInKB >= mib<<10 {
			return
		}
		disk := cloneDevice(d).(*types.VirtualDisk)
		disk.CapacityInKB, disk.CapacityInBytes = mib<<10, mib<<20
		changes = append(changes, change(types.VirtualDeviceConfigSpecOperationEdit, disk))
	}
	grow(list[0], rootMiB)
	var controller int32
	units := map[int32]bool{7: true} // the controller's own
	for _, d := range have {
		dev := d.GetVirtualDevice()
		if dev.ControllerKey == list[0].ControllerKey && dev.UnitNumber != nil {
			units[*dev.UnitNumber] = true
		}
	}
	controller = list[0].ControllerKey
	for i, want := range data {
		if at := imageDisks + i; at < len(list) {
			grow(list[at], want.SizeMiB)
			continue
		}
		unit := int32(0)
		for units[unit] {
			unit++
		}
		if unit > 15 {
			return nil, fmt.Errorf("no place for data disk %s: the controller of the image's root disk has 15 disks", want.Name)
		}
		units[unit] = true
		thin := true
		changes = append(changes, &types.VirtualDeviceConfigSpec{
			Operation: types.VirtualDeviceConfigSpecOperationAdd, FileOperation: types.VirtualDeviceConfigSpecFileOperationCreate,
			Device: &types.VirtualDisk{
				VirtualDevice: types.VirtualDevice{
					Key: int32(-300 - i), ControllerKey: controller, UnitNumber: &unit,
					Backing: &types.VirtualDiskFlatVer2BackingInfo{DiskMode: string(types.VirtualDiskModePersistent), ThinProvisioned: &thin},
				},
				CapacityInKB: want.SizeMiB << 10, CapacityInBytes: want.SizeMiB << 20,
			},
		})
	}
	return changes, nil
}

// extraConfig turns keys and values into what a config spec takes, sorted.
func extraConfig(values map[string]string) []types.BaseOptionValue {
	var list []types.BaseOptionValue
	for k, v := range values {
		list = append(list, &types.OptionValue{Key: k, Value: v})
	}
	slices.SortFunc(list, func(a, b types.BaseOptionValue) int {
		if a.GetOptionValue().Key < b.GetOptionValue().Key {
			return -1
		}
		return 1
	})
	return list
}
