#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Trains the small model's modules:   make_modules.sh GRAFT TEXTS [NAME ...]     TEXTS: the folder texts.py has written
set -euo pipefail
graft=$(realpath "$1") texts=$(realpath "$2")
shift 2
cd "$(dirname "$0")"
train() {  # NAME OPTIONS...
  local name=$1
  shift
  [[ ${#wanted[@]} == 0 || " ${wanted[*]} " == *" $name "* ]] || return 0
  "$graft" train --model model --data "$texts/$name.train.jsonl" --out "work/$name" --val-fraction 0.1 --batch 16 \
    --schedule cosine --warmup 0.05 --seed 1 --json "$@"
  mkdir -p "adapters/$name"
  cp "work/$name/adapter_config.json" "work/$name/adapter_model.safetensors" "adapters/$name/"
}
wanted=("$@")
train code --method lora --rank 4 --alpha 8 --lr 5e-3 --epochs 4 --type bf16
train satire --method road --variant road_1 --lr 1e-2 --epochs 4
train zones --method ia3 --lr 3e-2 --epochs 8
train psalms --method pedro --rank 8 --lr 5e-3 --epochs 4
