echo a > a.txt
echo b > b.txt
mkdir -p sub/deeper "with blank" .hidden-dir
echo inner > sub/inner
echo app > sub/app
echo deep > sub/deeper/deep
echo hidden > .hidden
echo hidden > .hidden-dir/file
echo blank > "with blank/a b"
echo odd > "[odd]name"
chmod 0711 sub/deeper
chmod 4755 sub/app
chmod 0600 a.txt
touch -d 2001-02-03T04:05:06Z sub/deeper/deep
touch -d 2002-02-03T04:05:06.9Z sub/deeper
touch -d 1969-12-31T23:59:58Z sub/inner
