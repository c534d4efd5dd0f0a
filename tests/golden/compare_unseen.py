# SPDX-License-Identifier: Apache-2.0
"""Random models with random adapters, unlike any golden case, through `graft logits` and through transformers + PEFT.

    python compare_unseen.py build/bin/graft [--seeds 0:200] [--only gpt2] [--keep DIR]

Every seed makes one small model (architecture, sizes, options drawn at random), several adapters by PEFT with randomly
drawn options, and one mixed batch of requests. Each request's answer must lie within 1e-4 relative L2, the promise of
exact precision, of what PEFT gives it alone in double precision (rotary angles, norms and softmax are f32 in
transformers). Nothing is written into the repository; this is a search for mistakes, the golden files are the record.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import peft
import torch
import transformers
from peft import IA3Config, LoraConfig, RoadConfig
from safetensors.torch import load_file

from golden import adapter_value, fill_model, load, relative, run

BOUND = 1e-4
DECODERS = ["llama", "mistral", "qwen2", "qwen3"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def some(rng, values, least=1):
    return rng.sample(values, rng.randint(least, len(values)))


def rope(rng, head_dim):
    kind = rng.choice(["default", "default", "linear", "llama3", "yarn"])
    at = {"rope_type": kind, "rope_theta": rng.choice([100.0, 10000.0, 500000.0])}
    if kind == "linear":
        at["factor"] = rng.choice([2.0, 3.5])
    if kind == "llama3":
        at.update(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
    if kind == "yarn":
        at.update(factor=rng.choice([2.0, 4.0]), original_max_position_embeddings=rng.choice([16, 32]))
        if rng.random() < 0.3:
            at.update(beta_fast=8.0, beta_slow=2.0)
        if rng.random() < 0.3:
            at["attention_factor"] = 1.3
        if rng.random() < 0.2:
            at["truncate"] = False
    return at


def decoder(rng, kind):
    heads = rng.choice([1, 2, 4, 6])
    kv = rng.choice([k for k in range(1, heads + 1) if heads % k == 0])
    head_dim = rng.choice([4, 6, 8, 10, 16])
    width = heads * rng.choice([head_dim, 5, 8, 12])
    own_head_dim = kind != "qwen2"  # Qwen2 has no such option
    if not own_head_dim:
        width = heads * head_dim
    common = dict(
        vocab_size=rng.choice([33, 64, 101]), hidden_size=width, intermediate_size=rng.choice([20, 37, 64]),
        num_hidden_layers=rng.choice([1, 2, 3]), num_attention_heads=heads, num_key_value_heads=kv,
        max_position_embeddings=64, rms_norm_eps=rng.choice([1e-5, 1e-6]), tie_word_embeddings=rng.random() < 0.5,
        hidden_act=rng.choice(["silu", "silu", "gelu", "gelu_pytorch_tanh", "relu"]), pad_token_id=None,
        bos_token_id=0, eos_token_id=1, rope_parameters=rope(rng, head_dim),
    )  # fmt: skip
    if own_head_dim:
        common["head_dim"] = head_dim
    if kind == "llama":
        common.update(attention_bias=rng.random() < 0.3, mlp_bias=rng.random() < 0.3)
    if kind == "mistral":
        common["sliding_window"] = rng.choice([None, 3, 7, 100])
    if kind in ("qwen2", "qwen3") and rng.random() < 0.5:
        common.update(use_sliding_window=True, sliding_window=rng.choice([3, 6]), max_window_layers=rng.choice([0, 1, 2]))
    if kind == "qwen3":
        common["attention_bias"] = rng.random() < 0.3
    names = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    head = rng.choice(HEADS["decoder"])
    if head == "ForSequenceClassification":
        common.update(num_labels=rng.choice([2, 3, 5]), pad_token_id=rng.choice([None, 1, 30]))
    return names[kind] + head, getattr(transformers, names[kind] + "Config")(**common), LINEAR


def gpt2(rng):
    heads = rng.choice([1, 2, 3, 4])
    head = rng.choice(HEADS["gpt2"])
    config = transformers.GPT2Config(
        vocab_size=rng.choice([33, 64, 101]), n_embd=heads * rng.choice([4, 7, 8]), n_layer=rng.choice([1, 2]), n_head=heads,
        n_inner=rng.choice([None, 40]), n_positions=64, activation_function=rng.choice(["gelu_new", "gelu", "relu", "silu"]),
        tie_word_embeddings=rng.random() < 0.7, bos_token_id=0, eos_token_id=1,
        **(dict(num_labels=3, pad_token_id=rng.choice([None, 1])) if "Sequence" in head else {}),
    )  # fmt: skip
    return "GPT2" + head, config, ["c_attn", "attn.c_proj", "mlp.c_proj", "c_proj", "c_fc"]


def encoder(rng, kind):
    heads = rng.choice([1, 2, 3, 4])
    head = rng.choice(HEADS["encoder"])
    config = getattr(transformers, {"bert": "BertConfig", "roberta": "RobertaConfig"}[kind])(
        vocab_size=rng.choice([33, 64, 101]), hidden_size=heads * rng.choice([4, 7, 8]), num_hidden_layers=rng.choice([1, 2]),
        num_attention_heads=heads, intermediate_size=rng.choice([20, 37]), max_position_embeddings=64,
        type_vocab_size=rng.choice([1, 2]), hidden_act=rng.choice(["gelu", "gelu_new", "relu"]),
        layer_norm_eps=rng.choice([1e-12, 1e-5]), num_labels=rng.choice([1, 2, 4]),
        pad_token_id=1 if kind == "roberta" else 0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        tie_word_embeddings=rng.random() < 0.7,
    )  # fmt: skip
    return {"bert": "Bert", "roberta": "Roberta"}[kind] + head, config, [
        "query", "key", "value", "attention.output.dense", "output.dense", "intermediate.dense", "dense",
    ]  # fmt: skip


HEADS = {
    "decoder": ["ForCausalLM", "ForCausalLM", "ForSequenceClassification"],
    "gpt2": ["LMHeadModel", "LMHeadModel", "ForSequenceClassification"],
    "encoder": ["Model", "ForSequenceClassification", "ForMaskedLM"],
}


def lora(rng, names, model, layers):
    options = dict(r=rng.randint(1, 9), lora_alpha=rng.choice([1, 4, 16, 7]), use_rslora=rng.random() < 0.3)
    targets = rng.choice(["list", "list", "all-linear", "regex", "paths"])
    linear = [n for n, m in model.named_modules() if isinstance(m, (torch.nn.Linear, transformers.pytorch_utils.Conv1D))]
    inner = [n for n in linear if ".0." in n or ".1." in n]
    chosen = some(rng, names)
    if targets == "regex":
        chosen = r".*\.0\..*(" + "|".join(c.replace(".", r"\.") for c in chosen) + ")"
    if targets == "paths":
        chosen = some(rng, inner)
    if targets == "all-linear":
        chosen = targets
    options["target_modules"] = chosen
    if rng.random() < 0.25 and targets == "list":
        options["layers_to_transform"] = rng.choice([0, [0], list(range(layers))])
        if rng.random() < 0.3:
            options["layers_pattern"] = rng.choice(["layers", "h", "layer"])
    if rng.random() < 0.2 and targets != "regex":
        options["exclude_modules"] = rng.choice([[rng.choice(names)], r".*\.0\..*" + rng.choice(names).split(".")[-1]])
    if rng.random() < 0.3:
        options["rank_pattern"] = {rng.choice(names): rng.randint(1, 12), rng.choice(inner): 5}
    if rng.random() < 0.3:
        options["alpha_pattern"] = {rng.choice(names): rng.choice([1, 3, 2.5]), r".*\.0\..*": 11}
    if rng.random() < 0.2:
        options["lora_bias"] = True
    if rng.random() < 0.2 and "lora_bias" not in options:
        options["init_lora_weights"] = rng.choice(["gaussian", "orthogonal", False])
        if options["init_lora_weights"] == "orthogonal":
            options["r"] = 4
    return LoraConfig(**options)


def ia3(rng, names, model, layers):
    chosen = some(rng, names)
    conv = "GPT2" in type(model).__name__
    forward = [n for n in some(rng, chosen, 0) if not conv or n != "c_proj"]
    options = dict(target_modules=chosen, feedforward_modules=forward, fan_in_fan_out=conv)
    if rng.random() < 0.2:
        options["exclude_modules"] = [rng.choice(names)]
    return IA3Config(**options)


def road(rng, names, model, layers):
    chosen = some(rng, names)
    sizes = [
        m.out_features
        for n, m in model.named_modules()
        if isinstance(m, torch.nn.Linear) and any(n.endswith("." + c) for c in chosen)
    ]
    fits = [g for g in (2, 4, 6, 8, 10, 12, 16, 32) if sizes and all(s % g == 0 for s in sizes)]
    if not fits:
        return None
    return RoadConfig(variant=rng.choice(["road_1", "road_2", "road_4"]), group_size=rng.choice(fits), target_modules=chosen)


def with_heads(rng, config, name):
    """modules_to_save and the task types that add them."""
    if "SequenceClassification" in name:
        config.task_type = rng.choice([None, "SEQ_CLS"])
        if config.task_type is None and rng.random() < 0.5:
            config.modules_to_save = ["score" if "Bert" not in name and "Roberta" not in name else "classifier"]
    elif "CausalLM" in name or "LMHead" in name:
        config.task_type = rng.choice([None, "CAUSAL_LM"])
        if rng.random() < 0.2:
            head, embedding = ("lm_head", "wte") if "LMHead" in name else ("lm_head", "embed_tokens")
            config.modules_to_save = rng.choice([[head], [embedding], [head, embedding]])
    return config


@torch.no_grad()
def make_adapter(rng, folder, name, base, names):
    kinds = [lora, lora, lora, ia3] + ([] if "GPT2" in type(base).__name__ else [road])
    make = rng.choice(kinds)
    model = type(base)(base.config).eval()
    model.load_state_dict(base.state_dict())
    config = make(rng, names, model, base.config.num_hidden_layers)
    if config is None:
        return False
    config = with_heads(rng, config, type(base).__name__)
    model.name_or_path = ""
    try:
        model = peft.get_peft_model(model, config)
    except (ValueError, NotImplementedError, TypeError):  # options PEFT does not take for this model
        return False
    for key, tensor in peft.get_peft_model_state_dict(model).items():
        tensor.copy_(adapter_value(name, key, tensor.shape).to(tensor.dtype))
    if rng.random() < 0.2:
        model = model.to(rng.choice([torch.bfloat16, torch.float16]))
    model.save_pretrained(folder / f"adapter_{name}")
    try:  # PEFT sorts rank patterns when it writes and takes the first match when it reads: some it cannot read itself
        peft.PeftModel.from_pretrained(load(folder), folder / f"adapter_{name}")
    except RuntimeError as error:
        assert "size mismatch" in str(error)
        shutil.rmtree(folder / f"adapter_{name}")
        return False
    return True


def make(seed, folder, only):
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kinds = [k for k in DECODERS + ["gpt2", "bert", "roberta"] if only in k]
    kind = kinds[seed % len(kinds)]
    name, config, names = gpt2(rng) if kind == "gpt2" else decoder(rng, kind) if kind in DECODERS else encoder(rng, kind)
    base = getattr(transformers, name)(config).eval()
    fill_model(base)
    base.to(rng.choice([torch.float32, torch.float32, torch.bfloat16, torch.float16]))
    base.save_pretrained(folder, max_shard_size=rng.choice(["1GB", "30KB"]))
    base.float()
    adapters = [a for a in "abcde" if make_adapter(rng, folder, a, base, names)]
    requests = []
    for adapter in [None, *adapters]:
        count = rng.randint(1, 30)
        request = {"tokens": [rng.randrange(config.vocab_size) for _ in range(count)]}
        if adapter:
            request["adapters"] = [{"name": adapter, "weight": 1.0}]
        if kind in ("bert", "roberta") and config.type_vocab_size > 1 and rng.random() < 0.5:
            request["token_type_ids"] = [rng.randrange(2) for _ in range(count)]
        requests.append(request)
    (folder / "requests.jsonl").write_text("".join(json.dumps(r) + "\n" for r in requests))
    return name, adapters, requests


@torch.no_grad()
def truth(folder, request):
    model = load(folder)
    if request.get("adapters"):
        name = request["adapters"][0]["name"]
        model = peft.PeftModel.from_pretrained(model, folder / f"adapter_{name}").double().eval()
    return run(model, request)


def compare(graft, seed, folder, only):
    """What differs, as lines of text."""
    name, adapters, requests = make(seed, folder, only)
    command = [graft, "logits", "--model", str(folder), "--requests", str(folder / "requests.jsonl")]
    for adapter in adapters:
        command += ["--adapter", f"{adapter}={folder / f'adapter_{adapter}'}"]
    result = subprocess.run([*command, "--out", str(folder / "out.safetensors")], capture_output=True, text=True)
    if result.returncode != 0:
        return name, [f"exit {result.returncode}: {result.stderr.strip()}"], 0.0
    if result.stderr.strip():
        print(f"{seed} {name}: {result.stderr.strip()}")
    mine, wrong, worst = load_file(folder / "out.safetensors"), [], 0.0
    for index, request in enumerate(requests):
        expected = truth(folder, request)
        own = mine[str(index)].double()
        if own.shape != expected.shape:
            wrong.append(f"request {index} {request.get('adapters')}: shape {list(own.shape)}, not {list(expected.shape)}")
            continue
        distance = relative(own, expected)
        worst = max(worst, distance)
        if not distance <= BOUND:
            wrong.append(f"request {index} {request.get('adapters')}: distance {distance:.1e}")
    return name, wrong, worst


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("graft")
    arguments.add_argument("--seeds", default="0:100")
    arguments.add_argument("--only", default="")
    arguments.add_argument("--keep", type=Path)
    options = arguments.parse_args()
    first, last = map(int, options.seeds.split(":"))
    bad, worst, adapters = 0, 0.0, 0
    for seed in range(first, last):
        root = Path(tempfile.mkdtemp(prefix="unseen-"))
        folder = root / "model"
        try:
            name, wrong, distance = compare(options.graft, seed, folder, options.only)
        except Exception:
            name, wrong, distance = "?", [traceback.format_exc(limit=-3)], 0.0
        worst = max(worst, distance)
        adapters += len(list(folder.glob("adapter_*")))
        if wrong:
            bad += 1
            print(f"seed {seed} {name}:\n  " + "\n  ".join(wrong), flush=True)
            if options.keep and folder.exists():
                shutil.copytree(folder, options.keep / f"seed_{seed}", dirs_exist_ok=True)
        shutil.rmtree(root)
    print(f"{last - first} models, {adapters} adapters, {bad} wrong, largest distance {worst:.1e}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
