mkdir -p replaced/file extra
echo now > replaced/dir
echo in > replaced/file/in
echo e > extra/e
mkdir extra/dir
echo h > extra/dir/h
