#!/usr/bin/env bash
# On a machine with a CUDA GPU, from a bare checkout: builds, checks and times everything, and
# prints the tables of benchmarks/results. Needs Python 3.11 or newer with numpy, tiktoken, torch,
# pytest, hypothesis and pybind11, CMake, Ninja and nvcc 13; no network.
#   benchmarks/bench_cuda.sh [--no-check] [--sanitize] [options of bench_cuda.py]
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
build=build/bench-cuda
check=yes sanitize=no
options=()
for argument in "$@"; do
  case "$argument" in
    --no-check) check=no ;;
    --sanitize) sanitize=yes ;;
    *) options+=("$argument") ;;
  esac
done

# The architecture of this GPU alone; Hopper's own instructions need the "a".
capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
[ "$capability" = 90 ] && capability=90a

step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }

mkdir -p build
step "build for $capability"
cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGPTOSS_CUDA=ON \
  -DGPTOSS_CUDA_ARCHS="$capability" -DPython_EXECUTABLE="$(command -v "$python")" \
  -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" >"$build.log" 2>&1 ||
  { tail -n 30 "$build.log"; exit 1; }
cmake --build "$build" >>"$build.log" 2>&1 || { tail -n 30 "$build.log"; exit 1; }

package=$build/package
mkdir -p "$package/gpt_oss_native"
cp -r python/gpt_oss_native/. "$package/gpt_oss_native/"
rm -f "$package"/gpt_oss_native/_core*.so
cp "$build"/_core*.so "$package/gpt_oss_native/"
PYTHONPATH=$(cd "$package" && pwd)
export PYTHONPATH OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

if [ "$check" = yes ]; then
  step "check"
  "$python" -m pytest -q -p no:cacheprovider tests/cuda
fi
if [ "$sanitize" = yes ]; then
  for tool in memcheck racecheck; do
    step "compute-sanitizer $tool"
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m pytest -q \
      -p no:cacheprovider tests/cuda/test_cuda_ops.py -k "not torch and not 5760 and not 2880" |
      tail -n 5
  done
fi

step "times"
"$python" benchmarks/bench_cuda.py "${options[@]}"
step "done"
