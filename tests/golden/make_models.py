# SPDX-License-Identifier: Apache-2.0
"""Writes data/models: tiny random models of every architecture, adapters of every kind, requests, expected logits.

    python make_models.py            all cases
    python make_models.py llama_road one or several of them

The packages and their versions are in requirements.txt; README.md describes the files.
"""

import sys

import torch
from peft import IA3Config, LoraConfig, RoadConfig
from safetensors.torch import load_file, save_file
from transformers import BertConfig, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, RobertaConfig

from golden import MODELS, Case, hashed, peft_logits, peft_mixed_batch, relative

ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def llama_config(kind=LlamaConfig, **options):
    defaults = dict(
        vocab_size=71, hidden_size=32, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=10, max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=1, pad_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    return kind(**{key: value for key, value in {**defaults, **options}.items() if key != "head_dim" or value})


def rope(kind, theta=10000.0, **options):
    return {"rope_type": kind, "rope_theta": theta, **options}


def lora(targets=("q_proj", "v_proj"), r=4, alpha=8, **options):
    targets = targets if isinstance(targets, str) else list(targets)
    return LoraConfig(r=r, lora_alpha=alpha, target_modules=targets, **options)


def road(variant, group_size, targets=ALL_LINEAR, **options):
    return RoadConfig(variant=variant, group_size=group_size, target_modules=list(targets), **options)


def lengths(c, *counts):
    for count in counts:
        c.request(count)


# ------------------------------------------------------------------------------------------- models without adapters


@case
def llama_multi_head():
    c = Case("llama_multi_head", "LlamaForCausalLM", llama_config(head_dim=None, num_key_value_heads=4))
    lengths(c, 5, 1, 17)
    c.finish()


@case
def llama_grouped_3_linear():
    """Grouped-query attention 3:1, tied head, linear RoPE scaling, config.json of older transformers."""
    config = llama_config(
        vocab_size=61, hidden_size=36, num_attention_heads=6, num_key_value_heads=2, head_dim=6,
        tie_word_embeddings=True,
        rope_parameters=rope("linear", 500.0, factor=4.0), num_hidden_layers=3, intermediate_size=64,
    )  # fmt: skip
    c = Case("llama_grouped_3_linear", "LlamaForCausalLM", config, old_style=True)
    lengths(c, 24, 7)
    c.finish()


@case
def llama_grouped_8_llama3():
    """One key-value head for eight query heads, 8 * 16 != 40, RoPE of Llama 3 with every band of wavelengths."""
    config = llama_config(
        vocab_size=131, hidden_size=40, num_attention_heads=8, num_key_value_heads=1, head_dim=16, intermediate_size=72,
        rope_parameters=rope(
            "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
        ),
    )  # fmt: skip
    c = Case("llama_grouped_8_llama3", "LlamaForCausalLM", config, old_style=True)
    lengths(c, 40, 3)
    c.finish()


@case
def llama_yarn():
    config = llama_config(
        head_dim=16, num_attention_heads=4, num_key_value_heads=1, tie_word_embeddings=True,
        rope_parameters=rope(
            "yarn", 1000.0, factor=4.0, original_max_position_embeddings=64, beta_fast=4.0, beta_slow=1.0
        ),
    )  # fmt: skip
    c = Case("llama_yarn", "LlamaForCausalLM", config)
    lengths(c, 40, 9)
    c.finish()


@case
def llama_yarn_defaults():
    """Only a factor is given; stored in bfloat16."""
    config = llama_config(
        head_dim=32, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
        rope_parameters=rope("yarn", 300.0, factor=2.0, original_max_position_embeddings=128),
    )  # fmt: skip
    c = Case("llama_yarn_defaults", "LlamaForCausalLM", config, dtype=torch.bfloat16, old_style=True)
    lengths(c, 33)
    c.finish()


@case
def llama_sharded():
    """Two safetensors files and their index; float16."""
    c = Case("llama_sharded", "LlamaForCausalLM", llama_config(), dtype=torch.float16, shard_size="24KB")
    assert len(list(c.folder.glob("model-*.safetensors"))) >= 2
    lengths(c, 11)
    c.finish()


@case
def mistral():
    config = llama_config(MistralConfig, sliding_window=5, num_key_value_heads=1)
    c = Case("mistral", "MistralForCausalLM", config)
    c.peft("lora", lora(ALL_LINEAR, r=3))
    lengths(c, 20, 5, 6)
    c.request(20, ["lora"])
    c.finish()


# ---------------------------------------------------------------------------------------------------- Llama, each kind


@case
def llama_lora():
    c = Case("llama_lora", "LlamaForCausalLM", llama_config())
    c.peft("a", lora())
    c.peft("b", lora(ALL_LINEAR, r=2, alpha=3))
    c.peft("rslora", lora(ALL_LINEAR, r=6, alpha=5, use_rslora=True))
    c.peft(
        "patterns",
        lora(
            ALL_LINEAR, r=4, alpha=8,
            rank_pattern={r"layers\.1\.self_attn\.q_proj": 2, "down_proj": 7, r".*layers\.[01]\.self_attn\.k_proj": 3},
            alpha_pattern={"down_proj": 10, "q_proj": 3, r"^model\.layers\.0\.self_attn\.q_proj": 20, "proj": 6},
        ),
    )  # fmt: skip
    c.peft("lora_bias", lora(["q_proj", "o_proj", "up_proj"], r=3, lora_bias=True))
    c.peft("one_layer", lora(["k_proj", "gate_proj"], r=12, layers_to_transform=[1]))
    c.peft("regex", lora(r".*\.layers\.0\..*(down|o)_proj", r=5))
    c.peft("f16", lora(ALL_LINEAR, r=5), dtype=torch.float16)
    c.peft("bf16", lora(["v_proj", "down_proj"], r=9, alpha=16), dtype=torch.bfloat16)
    c.request(7)
    for name in ("a", "b", "rslora", "patterns", "lora_bias", "one_layer", "regex", "f16", "bf16"):
        c.request(6 + len(name), [name])
    c.request(13, ["a", "b"])
    c.request(1, ["rslora"])
    c.request(8, ["f16", "lora_bias", "a"])
    c.finish()


@case
def llama_lora_embedding():
    """LoRA on the embedding and on the head of a model that ties them."""
    c = Case("llama_lora_embedding", "LlamaForCausalLM", llama_config(tie_word_embeddings=True))
    c.peft("embed", lora(["embed_tokens"], r=3), save_embedding_layers=False)
    c.peft("head", lora(["lm_head", "q_proj"], r=5), save_embedding_layers=False)
    c.peft("both", lora(["embed_tokens", "lm_head", "down_proj"], r=2), save_embedding_layers=False)
    c.request(9)
    c.request(9, ["embed"])
    c.request(12, ["head"])
    c.request(6, ["both"])
    c.finish()


@case
def llama_lora_embedding_saved():
    """As PEFT saves by itself: the untouched embedding lies beside the adapter as `embed_tokens.base_layer.weight`."""
    c = Case("llama_lora_embedding_saved", "LlamaForCausalLM", llama_config())
    c.peft("embed", lora(["embed_tokens", "v_proj"], r=3))
    c.request(9, ["embed"])
    c.request(4)
    c.finish()


ROAD = {
    "one_2": road("road_1", 2),
    "two_2": road("road_2", 2),
    "four_2": road("road_4", 2),
    "one_6": road("road_1", 6, ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    "two_6": road("road_2", 6, ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    "four_6": road("road_4", 6, ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    "one_64": road("road_1", 64, ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]),
    "two_64": road("road_2", 64, ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]),
    "four_64": road("road_4", 64, ["q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"]),
    "one_whole": road("road_1", 192, ["q_proj", "gate_proj", "up_proj"]),
    "two_whole": road("road_2", 96, ["o_proj", "down_proj"]),
    "four_whole": road("road_4", 192, ["q_proj", "gate_proj", "up_proj"]),
    "four_32": road("road_4", 32),
}


@case
def llama_road():
    """Group sizes 2, 6, 32, 64 and the whole output (96 or 192) of every variant."""
    config = llama_config(
        hidden_size=96, intermediate_size=192, num_attention_heads=12, num_key_value_heads=4, head_dim=16,
        num_hidden_layers=1,
    )  # fmt: skip
    c = Case("llama_road", "LlamaForCausalLM", config, dtype=torch.bfloat16)
    for name, adapter in ROAD.items():
        c.peft(name, adapter)
    c.request(8)
    for index, name in enumerate(ROAD):
        c.request(5 + index, [name])
    c.finish()


@case
def llama_ia3():
    """Output side on k and v, input side on down_proj; and every layer but one."""
    c = Case("llama_ia3", "LlamaForCausalLM", llama_config())
    c.peft("usual", IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]))
    c.peft(
        "wide",
        IA3Config(target_modules=ALL_LINEAR[1:], feedforward_modules=["o_proj", "gate_proj"]),
        dtype=torch.bfloat16,
    )
    c.request(10)
    c.request(10, ["usual"])
    c.request(15, ["wide"])
    c.finish()


@case
def llama_biased():
    """Biases everywhere: RoAd and IA3 act after them; lora_bias adds to them. Stored in bfloat16."""
    config = llama_config(attention_bias=True, mlp_bias=True, head_dim=12)
    c = Case("llama_biased", "LlamaForCausalLM", config, dtype=torch.bfloat16, old_style=True)
    c.peft("lora", lora(ALL_LINEAR, r=4, lora_bias=True, use_rslora=True))
    c.peft("road", road("road_4", 8))
    c.peft("ia3", IA3Config(target_modules=ALL_LINEAR, feedforward_modules=["down_proj", "q_proj"]))
    c.request(9)
    c.request(9, ["lora"])
    c.request(5, ["road"])
    c.request(14, ["ia3"])
    c.finish()


@case
def llama_mixed_batch():
    """Equally long requests which PEFT too serves as one batch (`adapter_names`); the two ways agree."""
    c = Case("llama_mixed_batch", "LlamaForCausalLM", llama_config(head_dim=12))
    c.peft("lora_a", lora(ALL_LINEAR, r=3))
    c.peft("lora_b", lora(r=8, use_rslora=True))
    c.peft("road_a", road("road_1", 4))
    c.peft("road_b", road("road_2", 8))
    batch = ["lora_a", "road_a", None, "lora_b", "lora_a", "road_b", "road_a", None, "lora_b", "road_b"]
    for name in batch:
        c.request(12, [name] if name else [])
    c.finish()
    for kind in ("lora", "road"):
        rows = [r for r, name in zip(c.requests, batch) if name is None or name.startswith(kind)]
        for row, logits in zip(rows, peft_mixed_batch(c.folder, rows)):
            assert relative(logits, peft_logits(c.folder, row)) < 1e-6, kind


@case
def llama_sums():
    """What PEFT has no mode for: weighted sums within a kind, several kinds on one layer.

    Within a kind I + sum w (M - I), respectively sum w s B A; between kinds R (l * (W x + b)) + B A x, with an
    input-side l W (l * x), whatever the order of the names in the request.
    """
    config = llama_config(attention_bias=True, mlp_bias=True, head_dim=12)
    c = Case("llama_sums", "LlamaForCausalLM", config)
    c.peft("lora_a", lora(ALL_LINEAR, r=4, alpha=6))
    c.peft("lora_b", lora(["q_proj", "k_proj", "down_proj"], r=7, use_rslora=True, lora_bias=True))
    c.peft("road_a", road("road_1", 8))
    c.peft("road_b", road("road_4", 8))
    c.peft("ia3_a", IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]))
    c.peft("ia3_b", IA3Config(target_modules=ALL_LINEAR, feedforward_modules=["down_proj"]))
    c.request(8)
    c.request(9, [("lora_a", 0.7), ("lora_b", -0.3)])
    c.request(9, [("lora_a", 0.5)])
    c.request(6, [("road_a", 0.5), ("road_b", 0.5)])
    c.request(7, [("road_a", 1.5)])
    c.request(7, [("road_b", -0.4), ("road_a", 0.8)])
    c.request(5, [("ia3_a", 0.6), ("ia3_b", 0.9)])
    c.request(11, ["road_a", "lora_a"])
    c.request(11, ["lora_a", "road_a"])
    c.request(4, ["ia3_b", "lora_b"])
    c.request(10, ["lora_b", "ia3_b", "road_b"])
    c.request(16, [("lora_a", 0.7), ("road_a", 0.5), ("ia3_a", 1.2), ("road_b", 0.3), ("lora_b", -0.3), ("ia3_b", 0.4)])
    c.finish()
    assert c.requests[7]["adapters"][::-1] == c.requests[8]["adapters"]


# ------------------------------------------------------------------------------------------------------------- PEDRO

RATIONALS = {  # GELU: numerator, denominator
    "rational_a": ([-0.0012423594, 0.5080497063, 0.4158636318, 0.1302271869, 0.0243559001, 0.0029028395],
                   [-0.0667501570, 0.1792764622, 0.0374668261, 1.66e-10]),
    "rational_b": ([-0.0004221071, 0.4999995552, 0.4027053546, 0.0736697690, -0.0129547881, -0.0037414003],
                   [4.96e-5, 0.1472977408, 1.16e-5, -0.0074838715]),
    "rational_a_6_5": ([0.000152539057, 0.500995952, 0.397495555, 0.245079673, 0.13360123, 0.0374507483, 0.00380250853],
                       [-0.0066414881, 0.483074319, 0.00299899557, 0.0744642691, 3.17e-9]),
}  # fmt: skip


def pedro(c, name, stem, d, sizes, r=4, rational="rational_a", heads=None, **config):
    """Adds a PEDRO folder. The rational is GELU's with every coefficient moved, a different one per layer."""
    shapes = {}
    for layer in range(c.base.config.num_hidden_layers):
        at = f"base_model.model.{stem}.{layer}.pedro_"
        shapes[at + "down.weight"], shapes[at + "up.weight"] = (r, d), (sum(sizes), r)
        if config.get("offset") == "bias":
            shapes[at + "up.bias"] = hashed(f"{name}/{at}up.bias", (sum(sizes),), mean=1.0, std=0.2)
        elif config.get("up_bias"):
            shapes[at + "up.bias"] = (sum(sizes),)
        if config.get("activation", "rational_a").startswith("rational"):
            for part, values in zip(("num", "den"), RATIONALS[rational]):
                moved = torch.tensor(values) + hashed(f"{name}/{at}{part}", (len(values),), std=0.05)
                shapes[at + part] = moved
        if config.get("pooling") == "attention":
            shapes[at + "pool.weight"] = (d,)
    shapes.update(heads or {})
    c.plain(name, dict(peft_type="PEDRO", r=r, **config), shapes, peft_reads_it=False)


@case
def llama_pedro():
    """Every option, with biases under the scaled projections; `defaults` names none of them."""
    config = llama_config(head_dim=12, attention_bias=True, mlp_bias=True, num_key_value_heads=1)
    c = Case("llama_pedro", "LlamaForCausalLM", config)
    add = lambda name, **options: pedro(c, name, "model.layers", 32, [48, 12, 56], **options)
    add("defaults")
    add("mean", r=3, pooling="mean", pooler_input="raw", activation="rational_b", rational="rational_b",
        numerator_degree=5, denominator_degree=4)  # fmt: skip
    add("max", pooling="max", offset="bias", activation="gelu")
    add("attention", r=5, pooling="attention", activation="silu", up_bias=True)
    add("after_rope", q_scaling="after_rope", activation="relu", pooling="mean")
    add("degrees", pooling="attention", pooler_input="raw", q_scaling="after_rope", activation="rational_a",
        rational="rational_a_6_5", numerator_degree=6, denominator_degree=5, offset="bias")  # fmt: skip
    c.peft("lora", lora(ALL_LINEAR, r=4))
    c.peft("road", road("road_1", 4))
    c.peft("ia3", IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]))
    c.request(9)
    for name in ("defaults", "mean", "max", "attention", "after_rope", "degrees"):
        c.request(4 + len(name), [name])
        c.request(13, [name], prompt_tokens=6)
    c.request(1, ["defaults"])
    c.request(10, ["defaults"], prompt_tokens=1)
    c.request(9, [("defaults", 0.6), ("max", -0.5)], prompt_tokens=5)
    c.request(8, [("degrees", 0.5), ("mean", 1.0)], prompt_tokens=7)
    c.request(11, ["defaults", "lora"], prompt_tokens=8)
    c.request(11, ["ia3", ("after_rope", 0.7), "road", ("lora", 0.5)], prompt_tokens=8)
    c.finish()


# ------------------------------------------------------------------------------------------- the other architectures


@case
def qwen2():
    c = Case(
        "qwen2", "Qwen2ForCausalLM", llama_config(Qwen2Config, head_dim=None, tie_word_embeddings=True), old_style=True
    )
    c.peft("lora", lora(ALL_LINEAR, r=3))
    c.peft("road", road("road_2", 8))
    c.request(9)
    c.request(12, ["lora"])
    c.request(7, ["road"])
    c.request(5, ["lora", "road"])
    c.finish()


@case
def qwen3():
    """RoAd and IA3 on q_proj and k_proj act before their norms."""
    c = Case("qwen3", "Qwen3ForCausalLM", llama_config(Qwen3Config, head_dim=12, num_key_value_heads=1))
    c.peft("lora", lora(ALL_LINEAR, r=3))
    c.peft("road", road("road_1", 4))
    c.peft(
        "ia3", IA3Config(target_modules=["q_proj", "k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])
    )
    c.request(9)
    c.request(12, ["lora"])
    c.request(7, ["road"])
    c.request(8, ["ia3"])
    pedro(c, "pedro", "model.layers", 32, [48, 12, 56])
    pedro(c, "pedro_after_rope", "model.layers", 32, [48, 12, 56], q_scaling="after_rope", pooling="mean")
    c.request(11, ["pedro"], prompt_tokens=6)
    c.request(11, ["pedro_after_rope"], prompt_tokens=6)
    c.finish()


def gpt2_config(**options):
    defaults = dict(
        vocab_size=83, n_positions=48, n_embd=30, n_layer=2, n_head=3, n_inner=None, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return GPT2Config(**{**defaults, **options})


@case
def gpt2():
    """Adapters on the fused c_attn and on both layers called c_proj; an adapter name matches by suffix."""
    c = Case("gpt2", "GPT2LMHeadModel", gpt2_config())
    conv = dict(fan_in_fan_out=True)
    c.peft("lora", lora(["c_attn", "c_proj", "c_fc"], r=4, lora_bias=True, **conv))
    c.peft("attention_only", lora(["c_attn", "attn.c_proj"], r=2, **conv))
    c.peft("mlp_only", lora(r".*mlp\.c_proj", r=3, use_rslora=True, **conv))
    c.peft("ia3", IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], **conv))
    d, inner = 30, 120
    road_shapes = {"attn.c_attn": 3 * d, "attn.c_proj": d, "mlp.c_fc": inner, "mlp.c_proj": d}
    c.plain(
        "road",
        dict(
            peft_type="ROAD",
            variant="road_2",
            group_size=10,
            target_modules=["c_attn", "c_fc", "c_proj"],
            task_type=None,
        ),
        {
            f"base_model.model.transformer.h.{layer}.{path}.road_{part}": (size,)
            for layer in range(2)
            for path, size in road_shapes.items()
            for part in ("theta", "alpha")
        },
        peft_reads_it=False,  # PEFT's RoAd takes nn.Linear alone
    )
    c.request(9)
    for name in ("lora", "attention_only", "mlp_only", "ia3", "road"):
        c.request(7 + len(name), [name])
    c.request(48)
    c.request(6, ["road", ("lora", 0.5), "ia3"])
    pedro(c, "pedro", "transformer.h", d, [d, d, inner])
    pedro(c, "pedro_raw", "transformer.h", d, [d, d, inner], pooler_input="raw", pooling="max", activation="gelu")
    c.request(9, ["pedro"])
    c.request(14, ["pedro_raw", "lora"], prompt_tokens=5)
    c.finish()


@case
def gpt2_hub():
    """As the file of `gpt2` on the hub: no `transformer.` in the names, the causal masks stored beside the weights."""
    config = gpt2_config(vocab_size=97, n_embd=32, n_head=4, n_inner=50)
    c = Case("gpt2_hub", "GPT2LMHeadModel", config, rename=lambda key: key.removeprefix("transformer."))
    path = c.folder / "model.safetensors"
    mask = torch.tril(torch.ones(48, 48, dtype=torch.uint8))[None, None]
    save_file(
        {**load_file(path), **{f"h.{i}.attn.bias": mask.clone() for i in range(2)}}, path, metadata={"format": "pt"}
    )
    lengths(c, 21, 3)
    c.finish()


def bert_config(kind=BertConfig, **options):
    defaults = dict(
        vocab_size=79, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=52,
        max_position_embeddings=40, type_vocab_size=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        pad_token_id=0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return kind(**{**defaults, **options})


@case
def bert():
    """No head: the last hidden states. `output.dense` means two layers of every block."""
    c = Case("bert", "BertModel", bert_config())
    c.peft("lora", lora(["query", "value", "output.dense"], r=3))
    c.peft("ia3", IA3Config(target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]))
    c.peft("road", road("road_4", 4, ["query", "key", "value", "dense"]))
    c.request(9)
    c.request(8, token_type_ids=[0, 0, 0, 1, 1, 1, 1, 1])
    c.request(12, ["lora"])
    c.request(7, ["ia3"], token_type_ids=[0, 0, 0, 0, 1, 1, 1])
    c.request(10, ["road"])
    c.request(6, ["road", "lora"])
    c.finish()


@case
def bert_classifier():
    """Each adapter brings its own classifier (modules_to_save)."""
    c = Case("bert_classifier", "BertForSequenceClassification", bert_config(num_labels=3))
    c.peft("lora", lora(["query", "value"], r=4, task_type="SEQ_CLS", modules_to_save=["classifier"]))
    c.peft("all", lora("all-linear", r=2, task_type="SEQ_CLS"))
    c.peft("ia3", IA3Config(
        target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"], task_type="SEQ_CLS",
    ))  # fmt: skip
    c.request(9)
    c.request(11, token_type_ids=[0] * 6 + [1] * 5)
    c.request(9, ["lora"])
    c.request(5, ["ia3"])
    c.request(14, ["all"])
    head = {f"base_model.model.classifier.{part}": shape for part, shape in (("weight", (3, 32)), ("bias", (3,)))}
    pedro(
        c, "pedro", "bert.encoder.layer", 32, [32, 32, 52], heads=head, modules_to_save=["classifier"], pooling="mean"
    )
    c.request(7, ["pedro"])
    c.finish()


@case
def roberta_classifier():
    """The RoAd paper's GLUE setting: positions start after the padding index, one token type, a head of two layers."""
    config = bert_config(
        RobertaConfig,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        num_labels=2,
        layer_norm_eps=1e-5,
    )
    c = Case("roberta_classifier", "RobertaForSequenceClassification", config)
    dense = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    c.peft("road_1", road("road_1", 4, dense, task_type="SEQ_CLS", modules_to_save=["classifier"]))
    c.peft("road_2", road("road_2", 4, dense, task_type="SEQ_CLS", modules_to_save=["classifier"]))
    c.peft("fc1", road("road_1", 2, ["intermediate.dense"], task_type="SEQ_CLS"))
    c.peft("lora", lora(["query", "value"], r=4, task_type="SEQ_CLS"))
    c.request(9)
    for name in ("road_1", "road_2", "fc1", "lora"):
        c.request(5 + 2 * len(name), [name])
    c.finish()


@case
def roberta():
    c = Case(
        "roberta", "RobertaModel", bert_config(RobertaConfig, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5)
    )
    c.peft("lora", lora(["key", "intermediate.dense"], r=3))
    c.request(13)
    c.request(6, ["lora"])
    c.finish()


# --------------------------------------------------------------------------------------------------------- more heads


@case
def llama_saved_ends():
    """Adapters that bring an embedding, a head, or both."""
    c = Case("llama_saved_ends", "LlamaForCausalLM", llama_config(vocab_size=47))
    c.peft("head", lora(["q_proj"], r=2, modules_to_save=["lm_head"]))
    c.peft("embedding", lora(["v_proj"], r=3, modules_to_save=["embed_tokens"]))
    c.peft("both", road("road_2", 2, ["down_proj"], modules_to_save=["lm_head", "embed_tokens"]))
    c.request(7)
    for name in ("head", "embedding", "both"):
        c.request(5 + len(name), [name])
    c.finish()


@case
def qwen2_windows():
    """Sliding windows in the layers from the second on."""
    config = llama_config(
        Qwen2Config, head_dim=None, num_hidden_layers=3, use_sliding_window=True, sliding_window=4, max_window_layers=1
    )
    c = Case("qwen2_windows", "Qwen2ForCausalLM", config)
    c.peft("lora", lora(["k_proj", "up_proj"], r=3))
    c.request(17)
    c.request(9, ["lora"])
    c.finish()


@case
def llama_classifier():
    """The answer stands at the last token that is not padding; each adapter brings its own score."""
    c = Case("llama_classifier", "LlamaForSequenceClassification", llama_config(num_labels=3, pad_token_id=1))
    c.peft("lora", lora(ALL_LINEAR, r=3, task_type="SEQ_CLS"))
    c.peft("road", road("road_4", 2, task_type="SEQ_CLS"))
    c.peft("adapted", lora(["q_proj", "score"], r=2))  # a delta on the base's score instead
    c.request(9)
    c.request(6)
    c.requests[-1]["tokens"] = [1, 5, 1, 9, 1, 1]
    c.request(12, ["lora"])
    c.request(5, ["road"])
    c.requests[-1]["tokens"][-1] = 1
    c.request(8, ["adapted"])
    c.finish()


@case
def gpt2_classifier():
    """No padding token: the last token, whichever it is."""
    config = gpt2_config(vocab_size=53, n_embd=24, n_head=3, n_inner=40, num_labels=2, pad_token_id=None)
    c = Case("gpt2_classifier", "GPT2ForSequenceClassification", config)
    c.peft("lora", lora(["c_attn", "c_proj"], r=3, task_type="SEQ_CLS", fan_in_fan_out=True))
    c.peft("ia3", IA3Config(
        target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], task_type="SEQ_CLS",
        fan_in_fan_out=True,
    ))  # fmt: skip
    c.request(9)
    c.request(7, ["lora"])
    c.request(11, ["ia3"])
    c.finish()


@case
def bert_masked():
    """Logits over the vocabulary for every token; `dense` means the head's transform too."""
    c = Case("bert_masked", "BertForMaskedLM", bert_config(hidden_act="relu"))
    c.peft("lora", lora(["query", "dense"], r=3))
    c.peft("all", lora("all-linear", r=2))
    c.request(9, token_type_ids=[0] * 4 + [1] * 5)
    c.request(6, ["lora"])
    c.request(8, ["all"])
    c.finish()


@case
def roberta_masked():
    """The decoder has a weight and a bias of its own; padding tokens are not counted in the positions."""
    config = bert_config(
        RobertaConfig, type_vocab_size=1, pad_token_id=1, layer_norm_eps=1e-5, tie_word_embeddings=False
    )
    c = Case("roberta_masked", "RobertaForMaskedLM", config)
    c.peft("road", road("road_1", 4, ["query", "lm_head.dense", "output.dense"]))
    c.request(9)
    c.requests[-1]["tokens"][3] = c.requests[-1]["tokens"][8] = 1
    c.request(7, ["road"])
    c.finish()


@case
def bert_all_linear():
    """A bare model: its pooler is adapted too, and does not matter."""
    c = Case("bert_all_linear", "BertModel", bert_config())
    c.peft("lora", lora("all-linear", r=2))
    c.request(7)
    c.request(8, ["lora"])
    c.finish()


if __name__ == "__main__":
    MODELS.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[1:] or CASES:
        CASES[name]()
