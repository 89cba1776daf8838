#!/usr/bin/env bash
# Makes one archive for a machine with GPUs that has neither Rust nor a network: program, tiny model, goldens, scripts.
#
#   tests/gpu/pack.sh [ARCHIVE]           # builds dg-bench with CUDA below target/gpu (half an hour on two cores)
#   DG_GPU_BIN=PROGRAM tests/gpu/pack.sh  # packs that program
#
# On the other machine: tar xf diffgentor-gpu.tar.xz && diffgentor-gpu/run.sh
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
archive=${1:-diffgentor-gpu.tar.xz}
if [ -z "${DG_GPU_BIN:-}" ]; then
  (cd "$root" && CARGO_TARGET_DIR=target/gpu cargo build --release -p dg-bench --no-default-features --features cuda)
  DG_GPU_BIN=$root/target/gpu/release/dg-bench
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
to=$work/diffgentor-gpu
mkdir -p "$to/data/golden"
cp "$DG_GPU_BIN" "$to/dg-bench"
strip "$to/dg-bench"
# The newest glibc that it asks for: run.sh says so where it cannot start.
symbols() { objdump -T "$to/dg-bench" || readelf -W --dyn-syms "$to/dg-bench"; }
glibc=$(symbols 2>/dev/null | grep -o 'GLIBC_[0-9][0-9.]*' | sort -uV | tail -n 1 || true)
if [ -n "$glibc" ]; then
  echo "glibc ${glibc#GLIBC_}" >"$to/glibc"
  echo "dg-bench needs glibc ${glibc#GLIBC_} or newer"
fi
cp "$root"/tests/gpu/{run.sh,peer.py} "$to/"
cp -r "$root/tests/data/tiny-dev" "$to/data/"
cp "$root"/tests/data/golden/{manifest.json,dev_256.safetensors,dev_256.png,dev_bf16.safetensors,dev_bf16.png} "$to/data/golden/"
XZ_OPT=${XZ_OPT:--6} tar -C "$work" -cJf "$archive" diffgentor-gpu
bytes=$(stat -c %s "$archive")
echo "$archive: $((bytes / 1000000)) MB"
if [ "$bytes" -gt 30000000 ]; then
  echo "error: $archive has $bytes bytes, more than 30 MB" >&2
  exit 1
fi
