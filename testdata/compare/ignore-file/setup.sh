mkdir -p .git/objects node_modules/x src/a/test src/b/test src/b/node_modules/y docs/guide/deep
echo 1 > .git/HEAD
echo 1 > node_modules/x/index.js
echo 1 > src/a/main.c
echo 1 > src/a/test/one.txt
echo 1 > src/b/x
echo 1 > src/b/test/keep.txt
echo 1 > src/b/test/drop.txt
echo 1 > src/b/node_modules/y/index.js
echo 1 > docs/README.md
echo 1 > docs/other.md
echo 1 > docs/guide/README.md
echo 1 > docs/guide/deep/f.md
echo 1 > important.log
echo 1 > other.log
ln -s docs/README.md README.md
ln -s node_modules nm-link
