#!/bin/sh
# Makes the root of the base image `busybox` in directory $1 from the static busybox $2: the tree that the golden cases
# were recorded on. Needs root, for owners.
set -eu
root=${1:?usage: rootfs.sh DIRECTORY BUSYBOX}
busybox=${2:?usage: rootfs.sh DIRECTORY BUSYBOX}
umask 022
mkdir -p "$root"
for dir in bin dev etc proc root sys; do
  install -d -m 0755 "$root/$dir"
done
install -d -m 1777 "$root/tmp"
install -m 0755 "$busybox" "$root/bin/busybox"
"$busybox" --list | grep -vx busybox | while read -r applet; do
  ln -s busybox "$root/bin/$applet"
done
printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' 'nobody:x:65534:65534:nobody:/home:/bin/false' \
  'daemon:x:1:1:daemon:/usr/sbin:/bin/false' > "$root/etc/passwd"
printf '%s\n' 'root:x:0:' 'daemon:x:1:' 'nogroup:x:65534:' > "$root/etc/group"
find "$root" -exec chown -h 0:0 {} + -exec touch -h -d @0 {} +
