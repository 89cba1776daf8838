#!/usr/bin/env bash
# Runs a command on a machine without a GPU as if it had one: CUDA's driver and NVRTC are those of this folder, kernels
# run on the processor. For checking that kernels and the code around them are right; it says nothing about speed.
#
#   tests/gpu/emulator/with.sh cargo test -p dg-cuda --features cuda
#   tests/gpu/emulator/with.sh target/gpu/release/dg-bench gpu kernels
#
# Needs g++. DG_EMULATED_HOME is where the libraries are built (target/emulated), DG_EMULATED_CACHE where compiled
# kernels stay, DG_EMULATED_MEMORY the device's bytes, DG_EMULATED_CAPABILITY its compute capability (80 for 8.0).
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
home=${DG_EMULATED_HOME:-$here/../../../target/emulated}
mkdir -p "$home"
home=$(cd "$home" && pwd)
build() {
  if [ "$home/$2" -nt "$here/$1" ]; then return; fi
  g++ -std=c++17 -O2 -Wall -shared -fPIC -fvisibility=hidden -o "$home/$2.new" "$here/$1" -ldl
  mv "$home/$2.new" "$home/$2"
}
build driver.cpp libcuda.so.1
build nvrtc.cpp libnvrtc.so
ln -sf libcuda.so.1 "$home/libcuda.so"
mkdir -p "$home/include"
cp -u "$here"/include/*.h "$home/include/"
export LD_LIBRARY_PATH=$home${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH} CUDA_PATH=$home
export DG_EMULATED_CACHE=${DG_EMULATED_CACHE:-$home/cache}
exec "$@"
