#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A model folder of onnxruntime-genai from one of Hugging Face, by onnxruntime-genai's own builder:

    bench/peers/ort_genai_model.py IN OUT int4|fp32 [PEFT FOLDER...]

int4: blocks of 32 weights, activations as 8-bit integers, the head in 8 bits (which graft's Q4_0 files keep too).
With LoRA folders the linear layers take factors as inputs, and OUT gets FOLDER's name.onnx_adapter for each of them.
All must have the first one's targets and rank.
"""
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
import onnx
import onnxruntime
from safetensors.numpy import load_file

INT4 = ["algo_config=rtn", "matmul_mixed_precision=last_matmul:int8"]
LAYERS = {"attn": ["q_proj", "k_proj", "v_proj", "o_proj"], "mlp": ["gate_proj", "up_proj", "down_proj"]}


def build(source, out, precision, options):
    with tempfile.TemporaryDirectory() as cache:
        subprocess.run([sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", out,
                        "-p", precision, "-e", "cpu", "-c", cache,
                        "--extra_options", "prune_lm_head=true", *options], check=True)


def end_nowhere(path):
    """Makes the end of a text a token that no request makes: all sides make as many tokens."""
    config = json.loads(path.read_text())
    config["model"]["eos_token_id"] = [0]
    path.write_text(json.dumps(config, indent=4) + "\n")


def factor_names(layers):
    return [f"/model/layers.{layer}/{block}/{linear}/lora_{side}/MatMul"
            for layer in range(layers) for block, linears in LAYERS.items() for linear in linears for side in "AB"]


def take_factors_as_inputs(path):
    """Makes every initializer of a LoRA factor an input too, which an active adapter gives. Returns their names."""
    model = onnx.load(path, load_external_data=False)
    factors = [tensor for tensor in model.graph.initializer if ".lora_" in tensor.name]
    for tensor in factors:
        model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, path)
    return {tensor.name for tensor in factors}


def export_adapter(folder, names, out):
    config = json.loads((folder / "adapter_config.json").read_text())
    parameters = {}
    for key, value in load_file(folder / "adapter_model.safetensors").items():
        name = key.removeprefix("base_model.model.").replace("self_attn", "attn").replace("weight", "MatMul.weight")
        scale = config["lora_alpha"] / config["r"] if ".lora_B." in name else 1
        factor = numpy.ascontiguousarray(value.T.astype(numpy.float32) * numpy.float32(scale))
        parameters[name] = onnxruntime.OrtValue.ortvalue_from_numpy(factor)
    if set(parameters) != names:
        raise RuntimeError(f"{folder} has other factors than the model takes")
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(parameters)
    adapter.export_adapter(str(out / f"{folder.name}.onnx_adapter"))


def main(source, out, precision, *adapters):
    options = INT4 if precision == "int4" else []
    if adapters:
        options.append(f"adapter_path={adapters[0]}")
        if precision == "int4":
            layers = json.loads((Path(source) / "config.json").read_text())["num_hidden_layers"]
            options.append("nodes_to_exclude=" + ",".join(factor_names(layers)))
    elif precision == "int4":
        options.append("fuse_mlp_gate_up=true")
    build(source, out, precision, options)
    end_nowhere(Path(out) / "genai_config.json")
    if adapters:
        names = take_factors_as_inputs(Path(out) / "model.onnx")
        for folder in adapters:
            export_adapter(Path(folder), names, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
