mkdir -p tree/dir/sub tree/empty
echo file > tree/file
echo sub > tree/dir/sub/f
ln -s dir tree/link
ln tree/file tree/hard
chmod 0750 tree/dir
chmod 4755 tree/file
find tree -exec touch -h -d '2005-06-07 08:09:10.5 UTC' {} +
tar="tar --sort=name --owner=21 --group=22 --numeric-owner"
$tar -cf plain.tar tree
$tar -czf files.tar.gz -C tree .
$tar -cJf files.tar.xz -C tree dir file
$tar -cjf files.tar.bz2 tree/dir
cp files.tar.gz misnamed.txt
echo "no archive" > text.tar.gz
echo "compressed text" | gzip -n > single.gz
tar -cf empty.tar -T /dev/null
mkdir kinds
mkfifo kinds/fifo
mknod kinds/null c 1 3
mknod kinds/loop b 7 3
ln -s /abs/olute kinds/abs
ln -s ../../../../up kinds/up
touch kinds/"$(printf 'k%.0s' $(seq 1 200))"
touch kinds/ünï
chmod 1777 kinds
$tar --format=gnu -cf kinds.tar kinds
mkdir -p root/bin root/etc root/usr/lib
echo x > root/etc/hosts
echo x > root/bin/true
mkdir root/lib
echo so > root/lib/x.so
$tar -czf root.tar.gz -C root .
$tar -cf deep.tar -C root lib/x.so etc
truncate -s 100k sparse
printf end >> sparse
$tar -S --format=gnu -cf sparse.tar sparse
mkdir twice
echo one > twice/f
echo d > twice/d
$tar -cf twice.tar -C twice f d
rm twice/d
mkdir twice/d
echo two > twice/f
chmod 0600 twice/f
echo in > twice/d/in
$tar -rf twice.tar -C twice f d
rm -rf kinds root sparse twice
