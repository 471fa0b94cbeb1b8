#!/bin/sh
# Runs the real cloud-init over the root directory of this machine, as an overlay that is thrown away, in
# namespaces of its own: unshare -mun --fork sh cloud-init.sh DIR MAC
# DIR holds user-data and meta-data; result.json, the file system's upper layer (upper/) and the calls of
# systemctl (systemctl.log) are left there.
set -eu
dir=$1 mac=$2

mount -t tmpfs overlay "$dir/scratch"
mkdir "$dir/scratch/upper" "$dir/scratch/work" "$dir/scratch/root"
root=$dir/scratch/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$dir/scratch/upper,workdir=$dir/scratch/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs run "$root/run"
mount --rbind /dev "$root/dev"
ip link set lo up
ip link add card0 type veth peer name card1
ip link set card0 address "$mac"

# No systemd runs in here: masks are made, the rest is written down.
cat > "$root/usr/local/bin/systemctl" <<'END'
#!/bin/sh
echo "$*" >> /run/systemctl.log
case $1 in
mask | unmask) exec /bin/systemctl "$@" ;;
is-active) exit 1 ;;
esac
END
cat > "$root/usr/local/bin/vmware-rpctool" <<'END'
#!/bin/sh
echo "$*" >> /run/rpctool.log
END
chmod 755 "$root/usr/local/bin/systemctl" "$root/usr/local/bin/vmware-rpctool"
rm -rf "$root/var/lib/cloud" "$root/etc/network/interfaces.d" "$root/etc/cloud/cloud-init.disabled"
echo 'datasource_list: [VMware]' > "$root/etc/cloud/cloud.cfg.d/99-datasource.cfg"

export PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export VMX_GUESTINFO=1
export VMX_GUESTINFO_METADATA="$(gzip -c "$dir/meta-data" | base64 -w0)" VMX_GUESTINFO_METADATA_ENCODING=gzip+base64
export VMX_GUESTINFO_USERDATA="$(gzip -c "$dir/user-data" | base64 -w0)" VMX_GUESTINFO_USERDATA_ENCODING=gzip+base64
for stage in 'init --local' init 'modules --mode=config' 'modules --mode=final'; do
  chroot "$root" cloud-init $stage >> "$dir/log" 2>&1 || true
done
cp "$root/run/cloud-init/result.json" "$dir/result.json"
cp "$root/run/systemctl.log" "$root/run/rpctool.log" "$dir/"
ls "$root/run/systemd/system" > "$dir/masked-runtime" 2>/dev/null || true
chroot "$root" id ops > "$dir/user"
cat "$root/etc/hostname" > "$dir/hostname"
# What the test asks for, read inside, where links lead to the right place.
while read -r path; do
  mkdir -p "$dir/files$(dirname "$path")"
  chroot "$root" cat "$path" > "$dir/files$path" || rm -f "$dir/files$path"
  chroot "$root" stat -L -c '%a' "$path" > "$dir/files$path.mode" || true
done < "$dir/paths"
