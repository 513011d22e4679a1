#!/bin/sh
# The kernels for arm64 on any machine: builds csrc/emulate.cpp with a cross compiler and runs it as three processors.
#   csrc/emulate.sh [BUILD FOLDER]    CXX=... chooses the compiler; needs qemu-aarch64 (Debian: qemu-user, g++-aarch64-linux-gnu)
# By hand, for the machine that one sits at:
#   cmake -S . -B build/check -DBISE_EMULATE=ON && cmake --build build/check && build/check/emulate
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$root/build/emulate}
compiler=${CXX:-aarch64-linux-gnu-g++}
cmake -S "$root" -B "$build" -DBISE_EMULATE=ON -DCMAKE_CXX_COMPILER="$compiler" \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 >/dev/null
cmake --build "$build" --parallel "${JOBS:-2}"
as() {
    echo "$1:"
    qemu-aarch64 -L "${SYSROOT:-/usr/aarch64-linux-gnu}" -cpu "$1" "$build/emulate" "$2"
}
as cortex-a53 base  # the first that has dot products is the A75
as cortex-a76 neondot
as max neondot
