# SPDX-License-Identifier: Apache-2.0
"""What the golden cases of make_models.py are built from: tensors filled from a hash of their name, models and
adapters written as Hugging Face folders, and two independent truths for the logits of a request:

- `peft_logits`: transformers and HF PEFT, read back from the files that were written;
- `folded_logits`: transformers on a copy of the model whose weights hold the adapters of the request, folded in by
  the plain formulas below. It knows what PEFT cannot say: weighted sums of RoAd or IA3, several kinds on one layer.

Both run in double precision on the CPU. Transformers itself computes rotary angles, RMS norms and the softmax in
float32, which leaves about 1e-7 relative to the exact result.
"""

import json
import math
import os
import re
import shutil
import warnings
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

import pedro_reference

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore")
torch.set_num_threads(1)

HERE = Path(__file__).resolve().parent
MODELS = HERE / "data" / "models"


# ----------------------------------------------------------------------------------------------------------- filling


def hashed(name, shape, mean=0.0, std=1.0):
    """Normal numbers that depend on the name and the shape alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return torch.from_numpy((mean + std * rng.standard_normal(tuple(shape))).astype(np.float32))


def hashed_tokens(name, count, vocab, low=2):
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return [int(t) for t in rng.integers(low, vocab, count)]


@torch.no_grad()
def fill_model(model):
    """Projections keep the size of what they project, norm weights lie around 1, no bias is zero."""
    seen = set()
    for path, module in model.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            if id(tensor) in seen:
                continue  # the second name of a tied tensor
            seen.add(id(tensor))
            full = f"{path}.{name}"
            if name == "bias":
                value = hashed(full, tensor.shape, std=0.2)
            elif isinstance(module, torch.nn.Embedding):
                value = hashed(full, tensor.shape, std=0.5)
            elif isinstance(module, torch.nn.Linear):
                value = hashed(full, tensor.shape, std=tensor.shape[1] ** -0.5)
            elif isinstance(module, transformers.pytorch_utils.Conv1D):
                value = hashed(full, tensor.shape, std=tensor.shape[0] ** -0.5)
            else:
                value = hashed(full, tensor.shape, mean=1.0, std=0.2)
            tensor.copy_(value)


def adapter_value(adapter, key, shape):
    """Far enough from the identity that a misplaced factor, sign or pair shows."""
    full = f"{adapter}/{key}"
    if key.endswith("lora_A.weight"):
        return hashed(full, shape, std=shape[1] ** -0.5)
    if key.endswith("lora_B.weight") or key.endswith("lora_embedding_B"):
        return hashed(full, shape, std=0.3)
    if key.endswith("lora_embedding_A") or key.endswith("road_theta"):
        return hashed(full, shape, std=0.5)
    if key.endswith("road_alpha") or key.endswith("ia3_l"):
        return hashed(full, shape, mean=1.0, std=0.3)
    if key.endswith("pedro_up.weight") or key.endswith("pedro_pool.weight"):
        return hashed(full, shape, std=0.4)
    return hashed(full, shape, std=0.2 if len(shape) == 1 else shape[1] ** -0.5)  # lora_bias, heads


# ----------------------------------------------------------------------------------------------------------- writing


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


class Case:
    """One folder under data/models: a model, its adapters, the requests and, from finish(), the expected logits."""

    def __init__(self, name, architecture, config, dtype=torch.float32, shard_size=None, old_style=False, rename=None):
        self.name, self.folder = name, MODELS / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        self.requests = []
        self.unknown_to_peft = set()
        self.base = getattr(transformers, architecture)(config).eval()
        fill_model(self.base)
        self.base.to(dtype)
        self.base.save_pretrained(self.folder, max_shard_size=shard_size or "1GB")
        (self.folder / "generation_config.json").unlink(missing_ok=True)
        if rename:
            path = self.folder / "model.safetensors"
            tensors = {rename(key): tensor for key, tensor in load_file(path).items()}
            save_file(tensors, path, metadata={"format": "pt"})
        if old_style:
            self._write_old_style_config()
        self.base.to(torch.float32)

    def _write_old_style_config(self):
        """The keys of config.json before transformers 5, which most files on the hub still have."""
        path = self.folder / "config.json"
        config = json.loads(path.read_text())
        config["torch_dtype"] = config.pop("dtype")
        rope = config.pop("rope_parameters")
        config["rope_theta"] = rope.pop("rope_theta")
        if rope["rope_type"] == "default":
            rope = None
        elif rope["rope_type"] == "linear":
            rope["type"] = rope.pop("rope_type")
        config["rope_scaling"] = rope
        write_json(path, config)

    @property
    def vocab(self):
        return self.base.config.vocab_size

    @torch.no_grad()
    def peft(self, name, config, dtype=torch.float32, **save_options):
        """Writes an adapter folder with PEFT's own save_pretrained."""
        model = _clone(self.base)
        model.name_or_path = ""
        patterns = {
            key: dict(getattr(config, key)) for key in ("rank_pattern", "alpha_pattern") if hasattr(config, key)
        }
        model = peft.get_peft_model(model, config)
        for key, tensor in peft.get_peft_model_state_dict(model, save_embedding_layers=False).items():
            tensor.copy_(adapter_value(name, key, tensor.shape))
        for module in model.modules():  # the adapter alone; the base stays as it is
            for container in ("lora_A", "lora_B", "road_theta", "road_alpha", "ia3_l"):
                if hasattr(module, container):
                    getattr(module, container).to(dtype)
        folder = self.folder / f"adapter_{name}"
        model.save_pretrained(folder, **save_options)
        (folder / "README.md").unlink(missing_ok=True)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text())
        for key in ("target_modules", "feedforward_modules", "modules_to_save"):
            if isinstance(config.get(key), list):
                config[key].sort()  # PEFT writes a set in arbitrary order
        config["base_model_name_or_path"] = None
        write_json(path, {**config, **patterns})  # PEFT sorts by name, but when it reads the first match wins

    def plain(self, name, config, shapes, peft_reads_it):
        """Writes an adapter folder without PEFT: for methods or layers that it lacks. `shapes`: key -> shape, or a
        tensor to write as it is."""
        if not peft_reads_it:
            self.unknown_to_peft.add(name)
        folder = self.folder / f"adapter_{name}"
        folder.mkdir()
        write_json(folder / "adapter_config.json", config)
        tensors = {
            key: value if torch.is_tensor(value) else adapter_value(name, key, value) for key, value in shapes.items()
        }
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def request(self, length, adapters=(), **optional):
        """`adapters`: names, or (name, weight) pairs."""
        tokens = hashed_tokens(f"{self.name}/{len(self.requests)}", length, self.vocab)
        line = {"tokens": tokens}
        if adapters:
            pairs = [(a, 1.0) if isinstance(a, str) else a for a in adapters]
            line["adapters"] = [{"name": name, "weight": weight} for name, weight in pairs]
        self.requests.append({**line, **optional})

    def finish(self):
        """Writes requests.jsonl and expected.safetensors. Where both truths exist they must agree."""
        with open(self.folder / "requests.jsonl", "w") as out:
            for request in self.requests:
                out.write(json.dumps(request) + "\n")
        expected, worst = {}, 0.0
        for index, request in enumerate(self.requests):
            logits = folded_logits(self.folder, request)
            if peft_can(self.folder, request, self.unknown_to_peft):
                folded, logits = logits, peft_logits(self.folder, request)
                worst = max(worst, relative(folded, logits))
            assert torch.isfinite(logits).all() and 0.05 < logits.abs().max() < 50, (
                self.name,
                index,
                logits.abs().max(),
            )
            expected[str(index)] = logits.to(torch.float32).contiguous()
        assert worst < 1e-6, (self.name, worst)
        for index, request in enumerate(self.requests):  # an adapter that changes nothing tests nothing
            if request.get("adapters"):
                bare = run(load(self.folder), {k: v for k, v in request.items() if k != "adapters"})
                assert relative(expected[str(index)].double(), bare) > 0.05, (self.name, index)
        save_file(expected, self.folder / "expected.safetensors")
        print(f"{self.name}: {len(self.requests)} requests, formulas against PEFT {worst:.1e}", flush=True)


def _clone(model):
    copy = type(model)(model.config).eval()
    copy.load_state_dict(model.state_dict())
    return copy


# ------------------------------------------------------------------------------------------------------------ truths


def relative(a, b):
    return float((a - b).norm() / b.norm())


def load(folder):
    config = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config.architectures[0]).from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    return model.eval().double()


@torch.no_grad()
def run(model, request, **options):
    """One request ({"tokens": [T]}) or an equally long batch of them ({"tokens": [B, T]})."""
    ids = torch.tensor(request["tokens"])
    batch = ids if ids.dim() == 2 else ids[None]
    inputs = {"input_ids": batch, "attention_mask": torch.ones_like(batch), **options}
    if "token_type_ids" in request:
        inputs["token_type_ids"] = torch.tensor(request["token_type_ids"])[None]
    out = model(**inputs)
    result = out.logits if "logits" in out else out.last_hidden_state
    return result if ids.dim() == 2 else result[0]


def adapter_config(folder, name):
    return json.loads((folder / f"adapter_{name}" / "adapter_config.json").read_text())


def peft_can(folder, request, unknown):
    """No adapter, one, or several LoRA adapters, each at weight 1: what PEFT computes as graft does."""
    adapters = request.get("adapters", [])
    kinds = {adapter_config(folder, a["name"])["peft_type"] for a in adapters}
    known = all(a["name"] not in unknown for a in adapters)
    return known and all(a["weight"] == 1 for a in adapters) and (len(adapters) < 2 or kinds == {"LORA"})


def peft_model(folder, names):
    model = peft.PeftModel.from_pretrained(load(folder), folder / f"adapter_{names[0]}", adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(folder / f"adapter_{name}", adapter_name=name)
    return model.double().eval()


def peft_logits(folder, request):
    names = [a["name"] for a in request.get("adapters", [])]
    if not names:
        return run(load(folder), request)
    model = peft_model(folder, names)
    model.base_model.set_adapter(names)
    return run(model, request)


def peft_mixed_batch(folder, requests):
    """Equally long requests, each with at most one adapter of one kind, through PEFT's own mixed batch."""
    names = [r["adapters"][0]["name"] if r.get("adapters") else "__base__" for r in requests]
    model = peft_model(folder, sorted(set(names) - {"__base__"}))
    return run(model, {"tokens": [r["tokens"] for r in requests]}, adapter_names=names)


def road_matrix(variant, g, theta, alpha):
    """R as a dense matrix: element k of a group pairs with k + g/2."""
    n = {"road_1": 2 * len(theta), "road_2": len(theta), "road_4": len(theta) // 2}[variant]
    R, h = torch.zeros(n, n, dtype=torch.float64), g // 2
    for i in range(n):
        group, k = divmod(i, g)
        if variant == "road_1":
            cos = sin = group * h + k % h
        elif variant == "road_2":
            cos = sin = i
        else:
            cos, sin = group * 2 * g + k, group * 2 * g + g + k
        R[i, i] = alpha[cos] * math.cos(theta[cos])
        s = alpha[sin] * math.sin(theta[sin])
        if k < h:
            R[i, i + h] = -s
        else:
            R[i, i - h] = s
    return R


class Contribution:
    """What the adapters of one request do to one layer: y = R (out * (W (in * x) + b)) + D x + e."""

    def __init__(self):
        self.input = self.output = self.road = self.delta = self.bias = 0.0

    def fold(self, W, b):
        if torch.is_tensor(self.input):
            W = W * (1 + self.input)[None, :]
        if torch.is_tensor(self.output):
            W, b = (1 + self.output)[:, None] * W, (1 + self.output) * b
        if torch.is_tensor(self.road):
            R = torch.eye(len(b), dtype=torch.float64) + self.road
            W, b = R @ W, R @ b
        return W + self.delta, b + self.bias


def pattern_value(pattern, path, default):
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


@torch.no_grad()
def merged(folder, request):
    """A copy of the model with the adapters of the request folded into its weights."""
    model = load(folder)
    modules = dict(model.named_modules())
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is not None:
        head.weight = torch.nn.Parameter(head.weight.clone())  # tied storage, separate adapters
    layers = {}
    for adapter in request.get("adapters", []):
        w, config = adapter["weight"], adapter_config(folder, adapter["name"])
        path = folder / f"adapter_{adapter['name']}" / "adapter_model.safetensors"
        tensors = {k.removeprefix("base_model.model."): v.double() for k, v in load_file(path).items()}
        for key, value in tensors.items():
            parts = key.rsplit(".", 2) if key.endswith((".weight", ".bias")) else [*key.rsplit(".", 1), ""]
            layer, kind = parts[0], ".".join(p for p in parts[1:] if p)
            if ".base_layer" in key or ".pedro_" in key:
                continue  # PEFT's copy of an embedding it did not train; what cannot be folded in
            if kind in ("lora_A.weight", "lora_embedding_A"):
                B = tensors[key.replace("_A", "_B")]
                r = pattern_value(config["rank_pattern"], layer, config["r"])
                alpha = pattern_value(config["alpha_pattern"], layer, config["lora_alpha"])
                assert r == value.shape[0]
                s = w * (alpha / math.sqrt(r) if config["use_rslora"] else alpha / r)
                entry = layers.setdefault(layer, Contribution())
                entry.delta = entry.delta + s * (B @ value if "weight" in kind else (B @ value).T)
                if layer + ".lora_B.bias" in tensors:
                    entry.bias = entry.bias + s * tensors[layer + ".lora_B.bias"]
            elif kind == "road_theta":
                alpha = tensors[layer + ".road_alpha"]
                R = road_matrix(config["variant"], config["group_size"], value, alpha)
                entry = layers.setdefault(layer, Contribution())
                entry.road = entry.road + w * (R - torch.eye(len(R), dtype=torch.float64))
            elif kind == "ia3_l":
                side = "output" if value.shape[1] == 1 else "input"
                entry = layers.setdefault(layer, Contribution())
                setattr(entry, side, getattr(entry, side) + w * (value.flatten() - 1))
            elif layer + "." + kind == key and key in model.state_dict():
                model.get_parameter(key).copy_(value)  # modules_to_save
            else:
                assert kind in ("lora_B.weight", "lora_B.bias", "lora_embedding_B", "road_alpha"), key
    for path, entry in layers.items():
        module = modules[path]
        if isinstance(module, torch.nn.Embedding):
            module.weight.copy_(module.weight + entry.delta)
            continue
        conv = isinstance(module, transformers.pytorch_utils.Conv1D)
        W = module.weight.T if conv else module.weight
        b = module.bias if module.bias is not None else torch.zeros(len(W), dtype=torch.float64)
        W, b = entry.fold(W, b)
        module.weight.copy_(W.T if conv else W)
        if module.bias is not None or b.any():
            module.bias = torch.nn.Parameter(b)
    return model


def folded_logits(folder, request):
    model = merged(folder, request)
    generators = []
    for adapter in request.get("adapters", []):
        config = adapter_config(folder, adapter["name"])
        if config["peft_type"] == "PEDRO":
            tensors = load_file(folder / f"adapter_{adapter['name']}" / "adapter_model.safetensors")
            tensors = {k.removeprefix("base_model.model."): v.double() for k, v in tensors.items()}
            generators.append((adapter["weight"], {**PEDRO_DEFAULTS, **config}, tensors))
    if not generators:
        return run(model, request)
    prompt = request.get("prompt_tokens")
    if model.config.model_type not in ("llama", "qwen3"):
        return run(with_pedro(model, generators, prompt), request)
    plain = pedro_reference.logits(
        json.loads((folder / "config.json").read_text()),
        {name: tensor.numpy() for name, tensor in model.state_dict().items()},
        [(w, pedro_reference.Generator(c, {k: v.numpy() for k, v in t.items()})) for w, c, t in generators],
        request["tokens"],
        prompt,
    )
    plain = torch.from_numpy(plain)
    if all(config["q_scaling"] == "before_rope" for _, config, _ in generators):
        hooked = run(with_pedro(model, generators, prompt), request)
        assert relative(hooked, plain) < 1e-6, (folder, request["adapters"], relative(hooked, plain))
    return plain


PEDRO_DEFAULTS = dict(
    pooling="last", pooler_input="normalized", offset="one", q_scaling="before_rope", activation="rational_a"
)


def pedro_vectors(config, tensors, stem, hidden):
    """hidden [n, d] -> all entries of l_q, l_v, l_u in one vector."""
    at = lambda suffix: tensors.get(f"{stem}.{suffix}")
    if config["pooling"] == "attention":
        h = torch.softmax(hidden @ at("pedro_pool.weight"), 0) @ hidden
    else:
        h = {"last": hidden[-1], "mean": hidden.mean(0), "max": hidden.amax(0)}[config["pooling"]]
    x = at("pedro_down.weight") @ h
    if config["activation"].startswith("rational"):
        num, den = at("pedro_num"), at("pedro_den")
        P = (num * x[:, None] ** torch.arange(len(num))).sum(1)
        powers = x[:, None] ** torch.arange(1, len(den) + 1)
        safe = (den * powers).abs().sum(1) if config["activation"] == "rational_a" else (den * powers).sum(1).abs()
        z = P / (1 + safe)
    else:
        z = getattr(torch.nn.functional, config["activation"])(x)
    bias = at("pedro_up.bias")
    return at("pedro_up.weight") @ z + (0 if bias is None else bias) + (config["offset"] == "one")


# per model: the layers, then within a layer the modules whose output is scaled and where their part begins and ends
PEDRO_SITES = {
    "llama": (r"model\.layers\.\d+", ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"]),
    "qwen3": (r"model\.layers\.\d+", ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"]),
    "gpt2": (r"transformer\.h\.\d+", ["attn.c_attn", "attn.c_attn", "mlp.c_fc"]),
    "bert": (r"(bert\.)?encoder\.layer\.\d+", ["attention.self.query", "attention.self.value", "intermediate.dense"]),
}


def with_pedro(model, generators, prompt):
    """Hooks on a torch model: the vectors are made when the query projection is called, then scale what follows."""
    pattern, sites = PEDRO_SITES[model.config.model_type]
    modules = dict(model.named_modules())
    for stem in [path for path in modules if re.fullmatch(pattern, path)]:
        state = {}
        parts = [modules[f"{stem}.{site}"] for site in sites]
        width = [m.nf if hasattr(m, "nf") else m.out_features for m in parts]
        if parts[0] is parts[1]:  # fused: the query is the first third, the value the last
            third = width[0] // 3
            spans = [(0, third), (2 * third, 3 * third), (0, width[2])]
        else:
            spans = [(0, w) for w in width]
        ends = np.cumsum([stop - start for start, stop in spans])

        def keep_residual(_, arguments, keywords, state=state):
            state["raw"] = arguments[0] if arguments else keywords["hidden_states"]

        def make(_, arguments, state=state, stem=stem):
            state["normalized"] = arguments[0]
            state["l"] = 1.0
            for w, config, tensors in generators:
                l = pedro_vectors(config, tensors, stem, state[config["pooler_input"]][0, :prompt])
                state["l"] = state["l"] + w * (l - 1)

        def scale(_, __, output, state, span, end):
            output = output.clone()
            output[..., span[0] : span[1]] *= state["l"][end - (span[1] - span[0]) : end]
            return output

        modules[stem].register_forward_pre_hook(keep_residual, with_kwargs=True)
        parts[0].register_forward_pre_hook(make)
        for part, span, end in zip(parts, spans, ends):
            part.register_forward_hook(partial(scale, state=state, span=span, end=int(end)))
    return model
