#!/bin/sh
# Builds the compiled core with the address and undefined-behaviour sanitizers and runs the tests of
# the ops, the engine and the numerics on it. Usage: tests/sanitize.sh VENV_BIN [pytest arguments]
set -eu
bin=$1
shift
[ $# -gt 0 ] || set -- tests/ops tests/engine -q
"$bin/cmake" --preset cpu-asan -DPython_EXECUTABLE="$bin/python" \
  -Dpybind11_DIR="$("$bin/python" -m pybind11 --cmakedir)"
"$bin/cmake" --build --preset cpu-asan
# The package beside the instrumented module, so that the one in the checkout stays as it is.
site=build/cpu-asan/site
rm -rf "$site"
mkdir -p "$site"
cp -R python/gpt_oss_native "$site/"
rm -f "$site"/gpt_oss_native/_core*.so
cp build/cpu-asan/_core*.so "$site/gpt_oss_native/"
# Python itself is not instrumented: the runtime is loaded first, and its own leaks are not ours.
LD_PRELOAD="$(c++ -print-file-name=libasan.so) $(c++ -print-file-name=libstdc++.so)"
export LD_PRELOAD ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$site
exec "$bin/python" -m pytest -p no:cacheprovider "$@"
