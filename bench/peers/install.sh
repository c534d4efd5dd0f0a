#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The peers of run.py, in .venv/peers: llama.cpp is compiled from llama-cpp-python's source for this processor.
set -euo pipefail
cd "$(dirname "$0")/../.."
python3 -m venv .venv/peers
CMAKE_ARGS="-DGGML_NATIVE=ON" .venv/peers/bin/pip install --no-binary llama-cpp-python -r bench/peers/requirements.txt
