# SPDX-License-Identifier: Apache-2.0
"""Writes data/formats.safetensors: stored rows of every weight format beside the values they decode to.

Needs numpy, gguf and safetensors (pip install gguf safetensors). Per format NAME the file holds
  NAME.stored   u8  [rows, bytes]   blocks of random bytes with finite scales, and blocks quantised from NAME.source
  NAME.decoded  f32 [rows, values]  gguf.quants.dequantize of them
  NAME.source, NAME.encoded         f32 rows and gguf.quants.quantize of them, where the package has a quantiser
All random values come from one fixed seed, so the file is the same on every run.
"""
import pathlib

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGML_QUANT_SIZES, quants
from safetensors.numpy import save_file

# Byte offsets of the half-precision scales in a block: random bytes there would give infinities and NaN.
HALVES = {
    Type.Q8_0: [0],
    Type.Q4_0: [0],
    Type.Q4_1: [0, 2],
    Type.Q5_0: [0],
    Type.Q5_1: [0, 2],
    Type.Q4_K: [0, 2],
    Type.Q5_K: [0, 2],
    Type.Q6_K: [208],
}
QUANTISERS = [Type.Q8_0, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1]


def random_blocks(rng, kind, rows, blocks):
    _, size = GGML_QUANT_SIZES[kind]
    stored = rng.integers(0, 256, (rows, blocks, size), dtype=np.uint8)
    for offset in HALVES[kind]:
        half = (rng.standard_normal((rows, blocks)) * 0.05).astype(np.float16)
        half[0, 0] = np.float16(3e-7)  # a subnormal scale
        stored[:, :, offset : offset + 2] = half.view(np.uint8).reshape(rows, blocks, 2)
    return stored.reshape(rows, blocks * size)


def source_rows(rng, rows, cols):
    x = rng.standard_normal((rows, cols)).astype(np.float32)
    x[0, :32] = 0  # all zero: the scale is zero
    x[1, :32] = 1.25  # all equal
    x[2, :32] = np.abs(x[2, :32])  # one sign
    x[3] *= 1e-6  # scales are subnormal halves
    x[4, :32] = np.linspace(-1, 1, 32)  # ties
    x[5, :32] = np.arange(32) - 16
    return x


def main():
    rng = np.random.default_rng(20240601)
    tensors = {}
    for kind in HALVES:
        block, _ = GGML_QUANT_SIZES[kind]
        stored = random_blocks(rng, kind, 3, 512 // block)
        if kind in QUANTISERS:
            source = source_rows(rng, 6, 512)
            encoded = quants.quantize(source, kind)
            tensors[f"{kind.name}.source"] = source[:, :256]
            tensors[f"{kind.name}.encoded"] = encoded[:, : encoded.shape[1] // 2]
        tensors[f"{kind.name}.stored"] = stored
        tensors[f"{kind.name}.decoded"] = quants.dequantize(stored, kind)

    # Sixteen-bit numbers: subnormals, infinities, the largest, and what rounds up to the next power of two.
    special = [0.0, -0.0, 1e-8, 6e-8, 6.1e-5, 65504.0, 65519.0, 65520.0, np.inf, -np.inf, 1 / 3, 2049.0, 2051.0, 1.00390625]
    numbers = np.concatenate([np.array(special), rng.standard_normal(114) * 10.0 ** rng.integers(-8, 5, 114)])
    numbers = numbers.astype(np.float32).reshape(1, -1)
    tensors["F16.source"] = tensors["BF16.source"] = numbers
    with np.errstate(over="ignore"):
        tensors["F16.encoded"] = numbers.astype(np.float16).view(np.uint8)
    tensors["BF16.encoded"] = quants.quantize(numbers, Type.BF16)
    for name in ["F16", "BF16"]:
        stored = rng.integers(0, 2**16, (1, 512), dtype=np.uint16)
        finite = (stored & 0x7C00) != 0x7C00 if name == "F16" else (stored & 0x7F80) != 0x7F80
        stored = np.where(finite, stored, 0).astype(np.uint16).view(np.uint8)
        tensors[f"{name}.stored"] = stored
        tensors[f"{name}.decoded"] = quants.dequantize(stored, Type[name])

    path = pathlib.Path(__file__).parent / "data" / "formats.safetensors"
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path, metadata={"format": "np"})
    print(path, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
