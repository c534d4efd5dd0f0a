# SPDX-License-Identifier: Apache-2.0
"""Greedy continuations of SmolLM2-135M-Instruct by transformers, on the weights dequantised from the GGUF file.

    python make_smollm2.py .cache/models/SmolLM2-135M-Instruct.Q4_1.gguf data/smollm2_greedy.json
"""
import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):",
    "Once upon a time, in a small village",
    "Water boils at 100 degrees because",
    "1, 2, 3, 5, 8, 13,",
    "Dear Sir or Madam,",
]


def main(gguf: str, out: str) -> None:
    folder, file = os.path.split(os.path.abspath(gguf))
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    records = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            whole = model.generate(ids, max_new_tokens=64, do_sample=False)
        records.append({"prompt": prompt, "tokens": ids[0].tolist(), "continuation": whole[0, ids.shape[1]:].tolist()})
    with open(out, "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(r) for r in records) + "\n]\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
