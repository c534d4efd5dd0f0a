# SPDX-License-Identifier: Apache-2.0
"""Writes data/gguf_lora/<model>-<adapter>-<type>.gguf: adapters of data/models converted by llama.cpp's own script.

    make_gguf_lora.py LLAMA_CPP/convert_lora_to_gguf.py

The files here are of the llama.cpp that llama-cpp-python 0.3.36 brings. tests/io/gguf_lora.cpp reads them and compares
with the adapters they were made from.
"""
import pathlib
import subprocess
import sys

DATA = pathlib.Path(__file__).parent / "data"
ADAPTERS = [
    ("llama_lora", "a", "f32"),
    ("llama_lora", "a", "q8_0"),  # where rows are blocks of 32; the others become F16
    ("llama_lora", "f16", "f16"),
    ("llama_lora", "f16", "bf16"),
    ("llama_lora_embedding", "embed", "f32"),  # which llama.cpp itself cannot apply: the model ties its head
    ("llama_lora_embedding_saved", "embed", "f32"),
    ("mistral", "lora", "f32"),
    ("qwen2", "lora", "f32"),
    ("qwen3", "lora", "f32"),
]


def main():
    out = DATA / "gguf_lora"
    out.mkdir(exist_ok=True)
    for model, adapter, kind in ADAPTERS:
        folder = DATA / "models" / model
        outfile = out / f"{model}-{adapter}-{kind}.gguf"
        subprocess.run(
            [sys.executable, sys.argv[1], "--base", folder, "--outtype", kind, "--outfile", outfile,
             folder / f"adapter_{adapter}"],
            check=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
