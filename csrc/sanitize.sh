#!/bin/sh
# The kernels under AddressSanitizer and UndefinedBehaviorSanitizer: builds them apart and runs their tests with them.
#   csrc/sanitize.sh [BUILD FOLDER] [PYTEST ARGUMENT ...]      PYTHON=... chooses the interpreter, with bise's test extras
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
build=${1:-$root/build/sanitize}
[ $# -gt 0 ] && shift
python=${PYTHON:-python3}
cmake -S "$root" -B "$build" -DBISE_SANITIZE=ON -DPython_EXECUTABLE="$(command -v "$python")" >/dev/null
cmake --build "$build" --parallel "${JOBS:-2}"
cd "$root"
# Python itself leaks by design; its allocator would hide small overruns.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc
LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libubsan.so)" exec "$python" - "$build" "$@" <<'PY'
import glob, importlib.util, sys

sys.path.insert(0, "src")
(path,) = glob.glob(sys.argv[1] + "/_kernels*.so")
spec = importlib.util.spec_from_file_location("bise._kernels", path)
sys.modules["bise._kernels"] = kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
import bise

bise._kernels = kernels
import pytest

sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "tests/test_cpu.py", "tests/test_rounding.py", "tests/test_in_turn.py",
                      *sys.argv[2:]]))
PY
