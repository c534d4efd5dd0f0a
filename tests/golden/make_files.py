# SPDX-License-Identifier: Apache-2.0
"""Writes data/tiny.gguf and data/tiny.safetensors with the formats' own Python packages.

Needs numpy, gguf and safetensors (pip install gguf safetensors). tests/io reads both, compares values and writes them
again byte for byte; tests/fuzz starts from them.
"""
import pathlib

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, quants
from safetensors.numpy import save_file

DATA = pathlib.Path(__file__).parent / "data"


def ramp(*shape):
    return (np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 5) / 8


def write_gguf(path):
    writer = GGUFWriter(path, "llama")
    writer.add_uint8("test.u8", 200)
    writer.add_int8("test.i8", -100)
    writer.add_uint16("test.u16", 60000)
    writer.add_int16("test.i16", -30000)
    writer.add_uint32("test.u32", 4000000000)
    writer.add_int32("test.i32", -2000000000)
    writer.add_float32("test.f32", 0.1)
    writer.add_bool("test.true", True)
    writer.add_bool("test.false", False)
    writer.add_string("test.string", "grüße, 世界")
    writer.add_uint64("test.u64", 2**63)
    writer.add_int64("test.i64", -(2**62))
    writer.add_float64("test.f64", 0.1)
    writer.add_array("test.strings", ["a", "", "Ġthe", "\n"])
    writer.add_array("test.numbers", [1, -2, 3])
    writer.add_array("test.scores", [0.5, -1.5])
    writer.add_key_value("test.bytes", [1, 2, 255], GGUFValueType.ARRAY, GGUFValueType.UINT8)
    writer.add_array("test.flags", [True, False, True])
    writer.add_tensor("matrix", ramp(3, 4))
    writer.add_tensor("half", ramp(2, 3, 5).astype(np.float16))
    writer.add_tensor("vector", ramp(7))
    writer.add_tensor("quantised", quants.quantize(ramp(2, 64), GGMLQuantizationType.Q4_1), raw_dtype=GGMLQuantizationType.Q4_1)
    writer.add_tensor("integers", np.arange(5, dtype=np.int32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    write_gguf(DATA / "tiny.gguf")
    tensors = {
        "z.weight": ramp(3, 4),
        "a.weight": ramp(2, 2),
        "half": ramp(5).astype(np.float16),
        "double": ramp(2).astype(np.float64),
        "long": np.arange(3, dtype=np.int64),
        "bytes": np.arange(3, dtype=np.uint8),
        "signed": np.arange(3, dtype=np.int8),
        "flags": np.array([True, False]),
        "short": np.arange(3, dtype=np.int16),
        "int": np.arange(3, dtype=np.int32),
        "scalar": np.array(2.5, dtype=np.float32),
        "empty": np.zeros((0, 4), dtype=np.float32),
        'quote " back \\ slash / tab \t grüße': ramp(1),
    }
    save_file(tensors, DATA / "tiny.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    main()
