#!/usr/bin/env bash
# Tries a machine with NVIDIA GPUs, part by part, in at most ten minutes. A part that fails does not hide the next.
#
#   tests/gpu/run.sh                      # needs a driver and a CUDA toolkit (NVRTC, headers); NCCL for several GPUs
#   DG_GPU_BIN=target/release/dg-bench tests/gpu/run.sh --device cpu      # a dry run with small shapes
#
# DG_GPU_BIN   the program; in a package, `dg-bench` beside this script
# DG_GPU_DATA  models and goldens; in a package, `data` beside this script
# DG_GPU_OUT   where results go; by default gpu-results
# DG_GPU_MAX   seconds for everything; by default 600
# DG_PYTHON    a Python with torch, for the peer's numbers; by default python3
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
device=cuda
while [ $# -gt 0 ]; do
  case $1 in
    --device) device=${2:?--device needs cuda or cpu}; shift 2 ;;
    -h | --help) sed -n '2,12s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) echo "error: unknown argument $1; hint: --device cuda|cpu" >&2; exit 2 ;;
  esac
done
case $device in cuda | cpu) ;; *) echo "error: --device is cuda or cpu, not $device" >&2; exit 2 ;; esac

if [ -x "$here/dg-bench" ]; then own=$here/dg-bench; else own=target/release/dg-bench; fi
bin=${DG_GPU_BIN:-$own}
if [ -d "$here/data" ]; then data=$here/data; else data=$here/../data; fi
data=${DG_GPU_DATA:-$data}
out=${DG_GPU_OUT:-gpu-results}
python=${DG_PYTHON:-python3}
end=$((SECONDS + ${DG_GPU_MAX:-600}))
if ! [ -x "$bin" ]; then
  echo "error: there is no program $bin; hint: DG_GPU_BIN, or cargo build --release -p dg-bench" >&2
  exit 3
fi
said=$("$bin" --version 2>&1)
code=$?
if [ "$code" -ne 0 ]; then
  echo "error: $bin cannot start (exit $code): $said" >&2
  needs=$(cat "$here/glibc" 2>/dev/null)
  has=$(getconf GNU_LIBC_VERSION 2>/dev/null)
  echo "hint: it needs ${needs:-the glibc that it was built against} or newer; this machine has ${has:-none}" >&2
  exit 3
fi
mkdir -p "$out" || exit 3
rm -f "$out"/*.json "$out"/*.rows "$out"/*.log "$out"/summary.txt

# PyTorch brings its own NCCL.
if [ "$device" = cuda ] && [ -z "${DG_NCCL_LIBRARY:-}" ]; then
  wheel=$("$python" -c 'import glob, nvidia.nccl as n; print(*glob.glob(list(n.__path__)[0] + "/lib/libnccl.so.2"))' 2>/dev/null)
  if [ -n "$wheel" ]; then export DG_NCCL_LIBRARY=$wheel; fi
fi

# part NAME SECONDS COMMAND…: the result in NAME.json, what it says besides in NAME.log. NAME.rows has what it found so far,
# for when it does not get to its end.
part() {
  local name=$1 most=$2 left=$((end - SECONDS))
  shift 2
  if [ "$left" -le 0 ]; then
    echo "no time was left for it" >"$out/$name.log"
    : >"$out/$name.json"
    return
  fi
  timeout --kill-after=5 $((left < most ? left : most)) "$@" --rows "$out/$name.rows" \
    >"$out/$name.json" 2>"$out/$name.log"
  local code=$?
  echo "$name: exit $code"
  echo "exit $code" >>"$out/$name.log"
}

ours() {
  local name=$1 most=$2
  shift 2
  part "$name" "$most" "$bin" --json gpu --device "$device" "$@"
}

# Ten minutes together, so that a part that takes all of its time leaves the others theirs.
ours 1-doctor 20 doctor
ours 2-kernels 100 kernels
# two tiny models meet many shapes once: tuning each of them would take all the time
CUBECL_AUTOTUNE_LEVEL=minimal ours 2-golden 100 golden --data "$data"
ours 3-conformance 60 conformance
ours 4-denoise 130 denoise
if "$python" -c 'import torch' 2>/dev/null; then
  part 4-peer 100 "$python" "$here/peer.py" --device "$device"
else
  echo "4-peer: left out, $python has no torch"
fi
ours 5-ranks 90 ranks

"$bin" --json gpu summary "$out" >"$out/results.json"
"$bin" gpu summary "$out" | tee "$out/summary.txt"
code=${PIPESTATUS[0]}
echo "results: $out/results.json"
exit "$code"
