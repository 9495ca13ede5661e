#!/usr/bin/env bash
# Runs the words it is given. The container runs as the user who started it, whom it does not know: where there is no
# home to write to, caches and compiled extensions go to one in /tmp, and USER names the user by number.
set -euo pipefail

if [ ! -w "${HOME:-/nowhere}" ]; then
  export HOME=/tmp/home-$UID
  mkdir -p "$HOME"
fi
export USER="${USER:-user$UID}"
exec "$@"
