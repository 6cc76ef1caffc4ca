#!/usr/bin/env bash
# On a machine with a CUDA GPU, from a bare checkout: builds, checks and times everything, and
# prints the tables of benchmarks/results. Needs Python 3.11 or newer with numpy, tiktoken, torch,
# pytest, hypothesis and pybind11, CMake, Ninja and nvcc 13; no network.
#   benchmarks/bench_cuda.sh [build] [check] [portable] [sanitize] [files] [bench]
#                            [-- options of bench_cuda.py]
# Without parts: all. "portable" checks the kernels of compute capability 8.0 on this GPU; "files" takes 14 GB of disk, and times transformers where it is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
build=build/bench-cuda
parts=()
while [ $# -gt 0 ]; do
  case "$1" in
    build | check | portable | sanitize | files | bench) parts+=("$1") ;;
    --) shift && break ;;
    *) echo "unknown part: $1" >&2 && exit 2 ;;
  esac
  shift
done
[ ${#parts[@]} -gt 0 ] || parts=(build check portable sanitize files bench)

step() { printf '\n== %s (%d s)\n' "$1" "$SECONDS"; }
has() { [[ " ${parts[*]} " == *" $1 "* ]]; }

package=$build/package
mkdir -p "$build"
if has build; then
  # The architecture of this GPU alone; Hopper's own instructions need the "a".
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  [ "$capability" = 90 ] && capability=90a
  step "build for $capability"
  {
    cmake -S . -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DGPTOSS_CUDA=ON \
      -DGPTOSS_CUDA_ARCHS="$capability" -DPython_EXECUTABLE="$(command -v "$python")" \
      -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" &&
      cmake --build "$build" -j "$(nproc)"
  } >"$build/log" 2>&1 || { tail -n 30 "$build/log" && exit 1; }
  rm -rf "$package"
  mkdir -p "$package"
  cp -r python/gpt_oss_native "$package/"
  rm -f "$package"/gpt_oss_native/_core*.so
  cp "$build"/_core*.so "$package/gpt_oss_native/"
fi
[ -d "$package" ] && export PYTHONPATH=$PWD/$package
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

failed=()
pytest() { "$python" -m pytest -q -p no:cacheprovider "$@"; }
if has check; then
  step "check"
  pytest tests/cuda tests/ops -k cuda || failed+=(check)
fi
if has portable; then
  step "portable"
  GPT_OSS_NATIVE_CUDA_ARCH=80 pytest tests/cuda || failed+=(portable)
fi
if has sanitize; then
  step "compute-sanitizer"
  small="not torch and not other_libraries and not 5760 and not 2880 and not 201088 and not 30000"
  sanitize() {
    compute-sanitizer --tool "$1" --error-exitcode 1 "$python" -m pytest -q -p no:cacheprovider \
      tests/cuda/test_cuda_ops.py tests/cuda/test_cuda_draws.py -k "$small" >"$build/$1.log" 2>&1
  }
  sanitize memcheck & memcheck=$!
  sanitize racecheck || failed+=(racecheck)
  wait "$memcheck" || failed+=(memcheck)
  tail -n 3 "$build/memcheck.log" "$build/racecheck.log"
fi
rm -f "$build/reached.json"
if has files; then
  step "files"
  "$python" benchmarks/bench_cuda_files.py --reached "$build/reached.json" || failed+=(files)
fi
if has bench; then
  step "bench"
  "$python" benchmarks/bench_cuda.py --reached "$build/reached.json" "$@" || failed+=(bench)
fi
step "done"
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}" && exit 1; }
