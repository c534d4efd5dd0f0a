#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Everything about the CUDA backend that needs a GPU, in one command: builds, tests, sanitises, measures, and writes
# device.json into build-device (or $GRAFT_BUILD). For a bare machine with an NVIDIA GPU, the CUDA Toolkit, CMake and
# g++, and no network.
#
#   bench/device.sh --pack   on a connected Debian machine, once: installs what graft is built with and copies it to
#                            .cache/device, which git ignores and which has to travel with the sources
#   bench/device.sh          on the machine with the GPU; --quick leaves out racecheck, initcheck and the benchmarks
#
# What has been run of this so far: --pack, the configuration with what it packs, and the compilation by nvcc without a
# GPU. The tests have run in the emulation (ctest -R '^cuda\.') only. On a GPU nothing has been run: no test, no
# sanitizer, no benchmark.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=.cache/device

if [ "${1:-}" = --pack ]; then
  bash cmake/setup.sh
  rm -rf "$pack"
  mkdir -p "$pack"
  # Debian's packages find themselves by their own place, so that a copy of their files serves as a prefix
  packages=(libeigen3-dev nlohmann-json3-dev libpcre2-dev libcli11-dev catch2 libbenchmark-dev)
  for package in $(dpkg-query -W -f '${Package}\n' 'libbenchmark1*' 2> /dev/null); do packages+=("$package"); done
  # of PCRE2 only the static library: the link to the shared one would lead nowhere
  dpkg -L "${packages[@]}" | grep -E '^/usr/(include|lib|share/(cmake|eigen3))' |
    grep -vE 'libpcre2.*\.so|libpcre2-(16|32|posix)\.a|unsupported' |
    while read -r file; do if [ -f "$file" ]; then echo "${file#/}"; fi; done | sort -u | tar -C / -cf - -T - | tar -C "$pack" -xf -
  echo "packed $(du -sm "$pack" | cut -f1) MB into $pack"
  exit 0
fi

quick=false
if [ "${1:-}" = --quick ]; then quick=true; fi
step() { printf '\n=== %s (%d s)\n' "$*" "$SECONDS"; }
export PATH="$PATH:/usr/local/cuda/bin"
for tool in nvcc cmake g++; do
  command -v "$tool" > /dev/null || { echo "device.sh: $tool is not installed" >&2; exit 1; }
done
architecture=${GRAFT_CUDA_ARCHITECTURES:-native}
build=${GRAFT_BUILD:-build-device}
results=$build/results
mkdir -p "$results"

step build
prefix=()
if [ -d "$pack" ]; then prefix=(-DCMAKE_PREFIX_PATH="$PWD/$pack/usr" -DGRAFT_FETCH_DEPENDENCIES=OFF); fi
cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DGRAFT_WITH_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$architecture" \
  -DGRAFT_INSTALL=OFF ${prefix[@]+"${prefix[@]}"}
cmake --build "$build" --parallel "$(nproc)" \
  --target test_cuda_device bench_cuda_operations bench_cuda_model graft_command
program=$build/tests/test_cuda_device

# run NAME COMMAND...: its output in results/NAME.log, its exit status in the variable NAME
run() {
  local name=$1
  shift
  step "$name"
  local status=0
  "$@" > "$results/$name.log" 2>&1 || status=$?
  tail -n 3 "$results/$name.log"
  printf -v "$name" '%s' "$status"
}

run tests "$program"
if grep -q 'there is no NVIDIA GPU' "$results/tests.log"; then
  echo "device.sh: there is no GPU here; it builds, and that is all that can be said" >&2
  exit 77
fi
sanitizers=(memcheck synccheck)
if ! $quick; then sanitizers+=(racecheck initcheck); fi
for tool in "${sanitizers[@]}"; do
  options=(--tool "$tool" --error-exitcode 1)
  # tests provoke refusals and check that they are told; every call of graft's is checked by itself
  if [ "$tool" = memcheck ]; then options+=(--leak-check full --report-api-errors no); fi
  run "$tool" compute-sanitizer "${options[@]}" "$program"
done
benchmarks=(operations model)
operations=skipped model=skipped
if ! $quick; then
  run operations "$build/bench/cuda_operations" --benchmark_out="$results/operations.json" \
    --benchmark_out_format=json --benchmark_repetitions=5 --benchmark_report_aggregates_only=true
  run model "$build/bench/cuda_model"
fi

step write $build/device.json
gpu() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2> /dev/null | head -n 1; }
{
  printf '{\n'
  printf '  "date": "%s",\n' "$(date -u +%FT%TZ)"
  printf '  "commit": "%s",\n' "$(git rev-parse HEAD 2> /dev/null || echo unknown)"
  printf '  "gpu": "%s",\n  "driver": "%s",\n' "$(gpu name)" "$(gpu driver_version)"
  printf '  "nvcc": "%s",\n' "$(nvcc --version | sed -n 's/.*release.*, V//p')"
  printf '  "exit status": {"tests": %s' "$tests"
  for tool in "${sanitizers[@]}"; do printf ', "%s": %s' "$tool" "${!tool}"; done
  for each in "${benchmarks[@]}"; do printf ', "%s": "%s"' "$each" "${!each}"; done
  printf '},\n  "operations": '
  if [ -s "$results/operations.json" ]; then cat "$results/operations.json"; else printf 'null'; fi
  # the model's rows are one object per line
  printf ',\n  "model": [%s]\n}\n' "$(grep -s '^{' "$results/model.log" | paste -sd, -)"
} > "$build/device.json"

for each in tests "${sanitizers[@]}" "${benchmarks[@]}"; do
  case ${!each} in
    0 | skipped) ;;
    77) echo "$each: some of it was skipped, see $results/$each.log" ;;  # what tests say of things they lack
    *) echo "$each: failed, see $results/$each.log" && failed=1 ;;
  esac
done
exit "${failed:-0}"
