mkdir -p tree/sub tree/sticky
echo run > tree/run
echo data > tree/sub/data
echo s > tree/suid
echo g > tree/sgid
chmod 0750 tree/sub
chmod 0711 tree/run
chmod 4755 tree/suid
chmod 2755 tree/sgid
chmod 1777 tree/sticky
ln -s run tree/link
chown -R 42:43 tree
chmod 4755 tree/suid
chmod 2755 tree/sgid
