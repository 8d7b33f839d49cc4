#!/bin/sh
set -e
if [ "$(id -u)" = 0 ]; then exec gosu kv "$0" "$@"; fi
exec "$@"
