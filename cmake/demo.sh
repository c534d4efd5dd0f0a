#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# From a fresh clone to the main job: installs what is missing, builds, fetches SmolLM2 and runs one batch in which
# every request has its own adapters. Arguments go to the demo (examples/01_many_tenants.cpp).
set -euo pipefail
cd "$(dirname "$0")/.."
bash cmake/setup.sh
model=$(bash cmake/fetch_model.sh)
cmake -S . -B build
cmake --build build --parallel --target 01_many_tenants
exec build/bin/01_many_tenants "${1:-$model}" "${@:2}"
