#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Everything about the CUDA backend that needs a GPU: builds, tests, sanitises, measures, and puts what it finds into
# build-device/results (or $GRAFT_BUILD/results). For a bare machine with an NVIDIA GPU, the CUDA Toolkit, CMake and
# g++, and no network.
#
#   bench/device.sh --pack       on a connected Debian machine, once: installs what graft is built with and copies it to
#                                .cache/device, which git ignores and which has to travel with the sources
#   bench/device.sh [STAGE...]   on the machine with the GPU; all stages where none is named, otherwise those named:
#     --build      compiles all programs; needs no GPU where GRAFT_CUDA_ARCHITECTURES says for which one (90: H100, H200)
#     --tests      the tests of the CUDA backend, file by file
#     --sanitize   the same under compute-sanitizer's four tools
#     --bench      bench/cuda_operations.cu, cuda_model.cu and cuda_train.cu
#     --peers      transformers + peft, bench/peers/device_peft.py; needs them, and torch, in python3 (or $PYTHON)
#
# A stage ends after ten minutes at the latest ($GRAFT_STAGE_SECONDS); one that is run again goes on from what is built
# and, where files of tests are run one by one, from those that have not passed since.
# Each leaves STAGE.log, the last two STAGE.jsonl with a result per line; device.json is all of it in one file, from
# which bench/device_page.py makes the tables and plots of docs/performance-gpu.md.
#
# What has been run of this so far: --pack, --build without a GPU, and the benchmarks and the peers with --small on a
# CPU. The tests have run in the emulation (ctest -R '^cuda\.') only. On a GPU nothing has been run: no test, no
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

stages=("$@")
if [ ${#stages[@]} = 0 ]; then stages=(--build --tests --sanitize --bench --peers); fi
export PATH="$PATH:/usr/local/cuda/bin"
build=${GRAFT_BUILD:-build-device}
python=${PYTHON:-python3}
results=$build/results state=$build/state
mkdir -p "$results" "$state"

step() { printf '\n=== %s (%d s)\n' "$*" "$SECONDS"; }
left() { echo $((stage_end - SECONDS)); }
# note NAME STATUS: what became of a thing; 0, 77 (some of it was skipped), 124 (did not end in its time), another failure
note() { echo "$2" > "$state/${1//\//:}"; }
name_of() { basename "$1" | tr : /; }  # of a file that note has written
gpu() { nvidia-smi --query-gpu="$1" --format=csv,noheader 2> /dev/null | head -n 1; }

# run NAME SECONDS COMMAND...: its output is appended to the stage's log, or, with rows=FILE, its standard output to FILE
run() {
  local name=$1 seconds=$2 status=0
  shift 2
  if [ "$seconds" -gt "$(left)" ]; then seconds=$(left); fi
  step "$name"
  if [ "$seconds" -lt 5 ]; then echo "no time is left" && note "$name" 124 && return; fi
  echo "=== $*" >> "$log"
  if [ -n "${rows:-}" ]; then
    timeout -k 10 "$seconds" "$@" >> "$rows" 2>> "$log" || status=$?
  else
    timeout -k 10 "$seconds" "$@" >> "$log" 2>&1 || status=$?
  fi
  note "$name" "$status"
  if [ "$status" != 0 ]; then echo "status $status; the log ends with" && tail -n 20 "$log"; fi
}

# test_files NAME SECONDS COMMAND...: COMMAND test_cuda_device on every file of tests, each in a process of its own, a
# few at a time; call `collect` afterwards
test_files() {
  local name=$1 seconds=$2 file
  shift 2
  for file in $(ls -S tests/cuda/*.cpp); do  # long ones first
    file=$(basename "$file" .cpp)
    if [ "$state/$name:$file" -nt "$build/tests/test_cuda_device" ] && [ "$(cat "$state/$name:$file")" = 0 ]; then continue; fi
    while [ "$(jobs -rp | wc -l)" -ge "$at_once" ]; do wait -n || true; done
    (
      if [ "$seconds" -gt "$(left)" ]; then seconds=$(left); fi
      status=124
      if [ "$seconds" -ge 5 ]; then
        status=0
        timeout -k 10 "$seconds" "$@" "$build/tests/test_cuda_device" --filenames-as-tags "[#$file]" \
          > "$state/$name:$file.log" 2>&1 || status=$?
      fi
      note "$name/$file" "$status"
      if [ "$status" != 0 ]; then echo "$name/$file: status $status" && grep -hsE '^skipped: ' "$state/$name:$file.log" | sort -u; fi
    ) &
  done
}
collect() {
  local file
  wait
  for file in "$state"/*.log; do
    [ -f "$file" ] || continue
    { echo "=== $(basename "$file" .log)" && cat "$file" && rm "$file"; } >> "$log"
  done
}
needs_gpu() {
  nvidia-smi > /dev/null 2>&1 || { echo "device.sh: there is no GPU here" >&2; exit 77; }
}
needs_program() {
  [ -x "$build/$1" ] || { echo "device.sh: $build/$1 is missing; first bench/device.sh --build" >&2; exit 1; }
}

build_stage() {
  local tool architecture=${GRAFT_CUDA_ARCHITECTURES:-native} options=()
  for tool in nvcc cmake g++; do
    command -v "$tool" > /dev/null || { echo "device.sh: $tool is not installed" >&2; exit 1; }
  done
  if [ "$architecture" = native ]; then needs_gpu; fi
  if [ -d "$pack" ]; then options+=(-DCMAKE_PREFIX_PATH="$PWD/$pack/usr" -DGRAFT_FETCH_DEPENDENCIES=OFF); fi
  if command -v ninja > /dev/null; then options+=(-G Ninja); fi
  # line numbers for the sanitizers
  run configure "$(left)" cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DGRAFT_WITH_CUDA=ON -DGRAFT_INSTALL=OFF \
    -DCMAKE_CUDA_ARCHITECTURES="$architecture" -DCMAKE_CUDA_FLAGS=-lineinfo "${options[@]}"
  run build "$(left)" cmake --build "$build" --parallel "$(nproc)" --target test_cuda_device bench_cuda_operations \
    bench_cuda_model bench_cuda_train graft_command 07_embed_cuda
  if [ -f "$build/.ninja_log" ]; then
    echo "the slowest units, in seconds:"
    awk 'NR > 1 {printf "%7.1f %s\n", ($2 - $1) / 1000, $4}' "$build/.ninja_log" | sort -rn | head -n 12 | tee -a "$log"
  fi
}

tests_stage() {
  needs_gpu
  needs_program tests/test_cuda_device
  at_once=8
  test_files tests 300
  collect
  run tests/07_embed_cuda 60 cmake -DPROGRAM="$PWD/$build/bin/07_embed_cuda" \
    -DEXPECTED="$PWD/examples/07_embed_cuda.expected" -P cmake/check_output.cmake
  # the command's own tests, with everything that computes on the GPU
  local command=$state/graft_on_gpu script
  printf '#!/bin/sh\ncase $1 in logits|generate|eval|train) set -- "$@" --device cuda ;; esac\nexec "%s" "$@"\n' \
    "$PWD/$build/bin/graft" > "$command"
  chmod +x "$command"
  for script in contract train; do
    run "tests/cli.$script" 240 cmake -DGRAFT="$PWD/$command" -DSOURCE_DIR="$PWD" -DWORK_DIR="$PWD/$build/cli_$script" \
      -P "tests/cli/$script.cmake"
  done
  rm "$command"
}

sanitize_stage() {
  local tool options
  needs_gpu
  needs_program tests/test_cuda_device
  at_once=12
  for tool in memcheck synccheck racecheck initcheck; do
    options=(--tool "$tool" --error-exitcode 1 --print-limit 20)
    # tests provoke refusals and check that they are told; every call of graft's is checked by itself
    if [ "$tool" = memcheck ]; then options+=(--leak-check full --report-api-errors no); fi
    # graft's kernels; what cuBLASLt's do between their own threads takes longest, and is not ours to mend
    if [ "$tool" = racecheck ] || [ "$tool" = synccheck ]; then options+=(--kernel-name kns=graft); fi
    test_files "$tool" 300 compute-sanitizer "${options[@]}"
  done
  collect
}

bench_stage() {
  local rows=$results/bench.jsonl
  needs_gpu
  needs_program bench/cuda_model
  : > "$rows"
  run bench/operations 90 "$build/bench/cuda_operations"
  run bench/decode 200 "$build/bench/cuda_model" decode
  run bench/prefill 90 "$build/bench/cuda_model" prefill
  run bench/training 90 "$build/bench/cuda_train"
  run bench/requests 200 "$build/bench/cuda_model" requests
  run bench/lengths 200 "$build/bench/cuda_model" lengths
}

peers_stage() {
  local rows=$results/peers.jsonl part
  needs_gpu
  : > "$rows"
  run peers 300 "$python" bench/peers/device_peft.py
  for part in none-compiled train-lora-compiled train-road-compiled lora-compiled; do
    run "peers/$part" 200 "$python" bench/peers/device_peft.py "$part"
  done
}

# all results as one file
write() {
  local file separator=
  {
    printf '{\n  "date": "%s",\n' "$(date -u +%FT%TZ)"
    printf '  "commit": "%s",\n' "$(git rev-parse HEAD 2> /dev/null || echo unknown)"
    printf '  "gpu": "%s",\n  "driver": "%s",\n' "$(gpu name)" "$(gpu driver_version)"
    printf '  "nvcc": "%s",\n  "status": {' "$(nvcc --version 2> /dev/null | sed -n 's/.*release.*, V//p')"
    for file in "$state"/*; do
      if [ -f "$file" ]; then printf '%s\n    "%s": %s' "$separator" "$(name_of "$file")" "$(cat "$file")" && separator=,; fi
    done
    printf '\n  },\n  "rows": [\n    %s\n  ]\n}\n' "$(cat "$results"/*.jsonl 2> /dev/null | grep '^{.*}$' | sed '$!s/$/,/')"
  } > "$results/device.json"
}

failed=0
for stage in "${stages[@]}"; do
  case $stage in
    --build | --tests | --sanitize | --bench | --peers) ;;
    *) echo "device.sh: there is no stage $stage" >&2; exit 2 ;;
  esac
done
for stage in "${stages[@]}"; do
  name=${stage#--}
  log=$results/$name.log
  : > "$log"
  stage_end=$((SECONDS + ${GRAFT_STAGE_SECONDS:-570}))
  "${name}_stage"
  write
done

step "results in $results"
for file in "$state"/*; do
  [ -f "$file" ] || continue
  status=$(cat "$file")
  case $status in
    0 | 77) ;;
    *) echo "$(name_of "$file"): status $status" && failed=1 ;;
  esac
done
exit "$failed"
