#!/usr/bin/perl
# setxattr FILE NAME HEX: setxattr(2), for images that have no other program for it.
use strict;
my ($file, $name, $hex) = @ARGV;
my $value = pack("H*", $hex);
syscall(188, $file, $name, $value, length($value), 0) == 0 or die "$file: $name: $!\n";
