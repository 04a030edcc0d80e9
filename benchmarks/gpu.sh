#!/usr/bin/env bash
# Builds, tests and benchmarks blip_fast in one call of under ten minutes: no network, no virtual environment.
#
#   benchmarks/gpu.sh --output DIR [--device cuda|cpu] [--quick|--full]
#
# DIR/results.json is rewritten after every benchmark, DIR/log.txt holds all that was printed, the summary last;
# DIR/bench.html is the page of them.
# PYTHON names the interpreter (default: python3); it has to have torch, triton, transformers, click, rich and pytest. Where
# it has pytest-xdist, tests run side by side; without webdataset and pydantic CapFilt and the launcher are not measured.
# Where tests fail the benchmarks still run, but the results say so and the exit code is not 0. Benchmarks for which no time or
# no package is there are listed as not measured, which is no error.
set -euo pipefail

total=570 # seconds for everything
build_limit=240
test_limit=180
reserve=15 # for start-up and the last writes

fail() {
  echo "gpu.sh: $*" >&2
  exit 2
}

left() { # seconds left for a stage that may take at most $1; never 0, which means "no limit" to timeout
  local remaining=$((total - reserve - SECONDS))
  ((remaining > 1)) || remaining=1
  echo $((remaining < $1 ? remaining : $1))
}

blip_fast() {
  "$python" -c 'from blip_fast.cli import main; main()' "$@"
}

build() {
  local limit log="$scratch/build.log"
  limit=$(left "$build_limit")
  if timeout "$limit" "$python" -m pip install --no-build-isolation --no-deps --no-index -e . >"$log" 2>&1; then
    echo "built and installed by pip"
    return
  fi
  tail -n 20 "$log"
  echo "pip could not build (its last lines are above); building with cmake, without installing"
  limit=$(left "$build_limit")
  local options=(-DPython_EXECUTABLE="$python" -DBLIP_FAST_CUDA="${BLIP_FAST_CUDA:-auto}"
    ${BLIP_FAST_CUDA_ARCHS:+"-DBLIP_FAST_CUDA_ARCHS=$BLIP_FAST_CUDA_ARCHS"})
  if ! { timeout "$limit" cmake -S . -B build/cmake -G Ninja "${options[@]}" &&
    timeout "$limit" cmake --build build/cmake; } >"$log" 2>&1; then
    tail -n 60 "$log"
    fail "the build failed (its last lines are above); there is nothing to measure"
  fi
  for folder in kernels benchmarks; do # what installing does: they are packages in blip_fast
    ln -sfn "../$folder" "blip_fast/$folder"
  done
  echo "built by cmake"
}

run_tests() { # most of their time is compilation: one process for two cores, where pytest can spread them
  local processes=$((($(nproc) + 1) / 2)) spread=()
  if "$python" -c 'import xdist' 2>/dev/null; then
    spread=(-n "$processes")
    export OMP_NUM_THREADS=2
  fi
  timeout "$(left "$test_limit")" "$python" -m pytest tests/ops -x -q "${spread[@]}"
}

run_stages() {
  local passed=--tests-passed status=0
  echo "== build"
  build
  blip_fast doctor || echo "doctor failed"

  echo "== tests"
  (run_tests) || passed=--tests-failed

  echo "== benchmarks ($((total - SECONDS)) s left)"
  blip_fast bench run --device "$device" "$extent" "$passed" --time-limit "$(left "$total")" \
    --json "$output/results.json" || status=$?
  [[ ! -f $output/results.json ]] || blip_fast bench report "$output/results.json" --output "$output/bench.html"
  [[ $passed == --tests-passed && $status -eq 0 ]]
}

output="" device="" extent=--full
while (($#)); do
  case $1 in
    --output) output=${2:?--output needs a folder} && shift ;;
    --device) device=${2:?--device needs cuda or cpu} && shift ;;
    --quick | --full) extent=$1 ;;
    *) fail "unknown argument '$1'; usage: benchmarks/gpu.sh --output DIR [--device cuda|cpu] [--quick|--full]" ;;
  esac
  shift
done
[[ -n $output ]] || fail "--output DIR is missing: the folder for results.json and log.txt"
mkdir -p "$output"
output=$(cd "$output" && pwd)
python=$(command -v "${PYTHON:-python3}") || fail "there is no '${PYTHON:-python3}'; set PYTHON to the one that has torch"
[[ $python == /* ]] || python=$PWD/$python
cd "$(dirname "$0")/.."

export PYTHONUNBUFFERED=1
PATH="$("$python" -c 'import sysconfig; print(sysconfig.get_path("scripts"))'):$PATH" # cmake and ninja may live there
capability=$("$python" -c 'import torch.cuda as c; print(*c.get_device_capability() if c.is_available() else "0", sep="")') ||
  fail "$python cannot import torch; set PYTHON to the interpreter that can"
if [[ -z $device ]]; then
  device=cuda
  if [[ $capability == 0 ]]; then device=cpu; fi
fi
[[ $device == cpu || $capability != 0 ]] || fail "torch finds no GPU; use --device cpu"
if [[ $device == cuda && -z ${BLIP_FAST_CUDA_ARCHS:-} ]]; then
  export BLIP_FAST_CUDA_ARCHS=$capability # only what this machine runs: a third of the time
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"; for link in blip_fast/{kernels,benchmarks}; do [[ ! -L $link ]] || rm "$link"; done' EXIT
run_stages 2>&1 | tee "$output/log.txt"
