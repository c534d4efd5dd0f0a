# SPDX-License-Identifier: Apache-2.0
"""Gradients of adapters by torch's autograd through transformers and HF PEFT in double, for tests/train/golden.cpp.

The loss of a case is the sum over its requests with exactly one adapter of the mean cross-entropy of the next token
(of a classifier: of label k % labels for request k). Each adapter's gradient is written as an adapter folder of its
own, whose tensors are dL/dtensor. PEDRO, which PEFT lacks, is hooked into the same torch models (golden.py).
"""

import json
import shutil

import torch
from safetensors.torch import load_file, save_file

import golden

OUT = golden.HERE / "data" / "gradients"
CASES = {
    "llama_lora": ["a", "lora_bias", "rslora", "one_layer"],
    "llama_road": ["one_2", "two_6", "four_2"],
    "llama_ia3": ["usual", "wide"],
    "llama_pedro": ["defaults", "attention", "mean"],
    "qwen2": ["lora", "road"],
    "qwen3": ["lora", "road", "pedro"],  # no hook on a torch module reaches the query behind RoPE
    "gpt2": ["lora", "ia3", "pedro"],
    "bert_classifier": ["lora", "ia3", "pedro"],
    "roberta_classifier": None,
}


def request_loss(model, request, index):
    tokens = torch.tensor(request["tokens"])[None]
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if "token_type_ids" in request:
        inputs["token_type_ids"] = torch.tensor(request["token_type_ids"])[None]
    logits = model(**inputs).logits[0]
    if logits.dim() == 1:
        return torch.nn.functional.cross_entropy(logits[None], torch.tensor([index % len(logits)]))
    return torch.nn.functional.cross_entropy(logits[:-1], tokens[0, 1:])


def peft_gradients(folder, name, requests):
    model = golden.peft_model(folder, [name])
    model.base_model.set_adapter([name])
    named = {}
    for key, parameter in model.named_parameters():
        parts = key.split(".")
        if name in parts and "original_module" not in parts:
            parameter.requires_grad_(True)
            named[".".join(p for p in parts if p not in (name, "modules_to_save"))] = parameter
    sum(request_loss(model, request, index) for index, request in requests).backward()
    return {key: p.grad if p.grad is not None else torch.zeros_like(p) for key, p in named.items()}


def pedro_gradients(folder, name, requests):
    config = {**golden.PEDRO_DEFAULTS, **golden.adapter_config(folder, name)}
    tensors = load_file(folder / f"adapter_{name}" / "adapter_model.safetensors")
    leaves = {key: value.double().requires_grad_(True) for key, value in tensors.items()}
    short = {key.removeprefix("base_model.model."): value for key, value in leaves.items()}
    total = 0
    for index, request in requests:
        model = golden.with_pedro(golden.load(folder), [(1.0, config, short)], request.get("prompt_tokens"))
        for key in set(short) & set(model.state_dict()):  # modules_to_save
            path, kind = key.rsplit(".", 1)
            del model.get_submodule(path)._parameters[kind]
            setattr(model.get_submodule(path), kind, short[key])
        total = total + request_loss(model, request, index)
    total.backward()
    return {key: value.grad if value.grad is not None else torch.zeros_like(value) for key, value in leaves.items()}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    for case, wanted in CASES.items():
        folder = golden.MODELS / case
        lines = [json.loads(line) for line in (folder / "requests.jsonl").read_text().splitlines()]
        alone = [
            (index, request)
            for index, request in enumerate(lines)
            if len(request.get("adapters", [])) == 1 and request["adapters"][0]["weight"] == 1
        ]
        for name in wanted or sorted({r["adapters"][0]["name"] for _, r in alone}):
            requests = [(i, r) for i, r in alone if r["adapters"][0]["name"] == name]
            source = folder / f"adapter_{name}"
            if not requests:
                continue
            pedro = golden.adapter_config(folder, name)["peft_type"] == "PEDRO"
            gradients = (pedro_gradients if pedro else peft_gradients)(folder, name, requests)
            to = OUT / case / name
            to.mkdir(parents=True)
            shutil.copy(source / "adapter_config.json", to)
            stored = load_file(source / "adapter_model.safetensors")
            assert set(stored) == set(gradients), set(stored) ^ set(gradients)
            save_file(
                {k: v.float().reshape(stored[k].shape).contiguous() for k, v in gradients.items()},
                to / "adapter_model.safetensors",
                metadata={"format": "pt"},
            )
            print(f"{case}/{name}: {len(requests)} requests", flush=True)


if __name__ == "__main__":
    main()
