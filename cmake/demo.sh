#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone to the main job: installs what is missing, builds, and runs one batch in which every request has
# its own adapters (examples/01_many_tenants.cpp), on the small model of this repository. `demo.sh smollm2` fetches
# SmolLM2-135M-Instruct and runs its batch instead.
set -euo pipefail
cd "$(dirname "$0")/.."
case ${1:-small} in
  small) data=examples/data/small model=examples/data/small/model tokens=80 ;;
  smollm2) data=examples/data tokens=28 ;;
  *) echo "demo.sh: expected nothing or smollm2, got $1" >&2; exit 2 ;;
esac
bash cmake/setup.sh
[ -n "${model:-}" ] || model=$(bash cmake/fetch_model.sh)
cmake -S . -B build
cmake --build build --parallel --target 01_many_tenants
exec build/bin/01_many_tenants "$data" "$model" "$tokens"
