# SPDX-License-Identifier: Apache-2.0
"""PEDRO in plain double precision: a Llama or Qwen3 forward pass written out row by row, without torch, transformers
or PEFT, so that every option (also the query scaled behind RoPE, which no hook on a torch module can reach) has a truth
that shares no code with what it checks.
"""

import math

import numpy as np


class Generator:
    """One adapter folder: `config` is its adapter_config.json, `tensors` its tensors without `base_model.model.`."""

    def __init__(self, config, tensors):
        self.config, self.tensors = config, tensors

    def vectors(self, stem, hidden, sizes):
        """hidden [n, d]: the prompt rows of the pooler input. Returns one vector per size."""
        at = lambda suffix: self.tensors.get(f"{stem}.{suffix}")
        h = self.pool(hidden, at("pedro_pool.weight"))
        down, up, bias = at("pedro_down.weight"), at("pedro_up.weight"), at("pedro_up.bias")
        z = [self.activate(sum(w * x for w, x in zip(row, h)), at("pedro_num"), at("pedro_den")) for row in down]
        l = []
        for j, row in enumerate(up):
            value = sum(w * x for w, x in zip(row, z))
            if bias is not None:
                value += bias[j]
            l.append(value + 1 if self.config["offset"] == "one" else value)
        assert len(l) == sum(sizes)
        ends = np.cumsum(sizes)
        return [np.array(l[end - size : end]) for end, size in zip(ends, sizes)]

    def pool(self, hidden, query):
        pooling = self.config["pooling"]
        if pooling == "last":
            return hidden[-1]
        if pooling == "mean":
            return sum(hidden) / len(hidden)
        if pooling == "max":
            return np.array([max(column) for column in hidden.T])
        assert pooling == "attention"
        scores = [math.fsum(query * row) for row in hidden]
        e = [math.exp(score - max(scores)) for score in scores]
        return sum(p / sum(e) * row for p, row in zip(e, hidden))

    def activate(self, x, num, den):
        kind = self.config["activation"]
        if kind == "gelu":
            return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))
        if kind == "silu":
            return x / (1 + math.exp(-x))
        if kind == "relu":
            return max(x, 0.0)
        P = sum(a * x**i for i, a in enumerate(num))
        if kind == "rational_a":
            return P / (1 + sum(abs(b) * abs(x) ** i for i, b in enumerate(den, 1)))
        assert kind == "rational_b"
        return P / (1 + abs(sum(b * x**i for i, b in enumerate(den, 1))))


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rotate(x, theta):
    """x [T, n]: one head; element i turns with element i + n/2."""
    T, n = x.shape
    out = np.empty_like(x)
    for t in range(T):
        for i in range(n // 2):
            angle = t * theta ** (-2 * i / n)
            a, b = x[t, i], x[t, i + n // 2]
            out[t, i] = a * math.cos(angle) - b * math.sin(angle)
            out[t, i + n // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def logits(config, weights, generators, tokens, prompt_tokens=None):
    """config: config.json of a Llama or Qwen3 with default RoPE; weights: name -> float64 array;
    generators: (weight, Generator) pairs. Within one request PEDRO modules add: 1 + sum w (l - 1)."""
    d, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    n = config.get("head_dim") or d // heads
    eps, theta = config["rms_norm_eps"], config["rope_parameters"]["rope_theta"]
    prompt = len(tokens) if prompt_tokens is None else prompt_tokens

    def linear(name, x):
        y = x @ weights[f"{name}.weight"].T
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    x = weights["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        stem = f"model.layers.{layer}"
        attention, mlp = f"{stem}.self_attn", f"{stem}.mlp"
        h = rms_norm(x, weights[f"{stem}.input_layernorm.weight"], eps)
        sizes = [heads * n, kv * n, config["intermediate_size"]]
        before, after = np.ones(sizes[0]), np.ones(sizes[0])
        l_v, l_u = np.ones(sizes[1]), np.ones(sizes[2])
        for w, generator in generators:
            pooled = h if generator.config["pooler_input"] == "normalized" else x
            q, v, u = generator.vectors(stem, pooled[:prompt], sizes)
            if generator.config["q_scaling"] == "before_rope":
                before += w * (q - 1)
            else:
                after += w * (q - 1)
            l_v += w * (v - 1)
            l_u += w * (u - 1)
        Q = linear(f"{attention}.q_proj", h) * before
        K = linear(f"{attention}.k_proj", h)
        V = linear(f"{attention}.v_proj", h) * l_v
        out = np.zeros((len(tokens), heads * n))
        for head in range(heads):
            group = head // (heads // kv)
            q, k = Q[:, head * n : (head + 1) * n], K[:, group * n : (group + 1) * n]
            if f"{attention}.q_norm.weight" in weights:
                q = rms_norm(q, weights[f"{attention}.q_norm.weight"], eps)
                k = rms_norm(k, weights[f"{attention}.k_norm.weight"], eps)
            q, k = rotate(q, theta) * after[head * n : (head + 1) * n], rotate(k, theta)
            for t in range(len(tokens)):
                scores = k[: t + 1] @ q[t] / math.sqrt(n)
                p = np.exp(scores - scores.max())
                out[t, head * n : (head + 1) * n] = (p / p.sum()) @ V[: t + 1, group * n : (group + 1) * n]
        x = x + linear(f"{attention}.o_proj", out)
        h = rms_norm(x, weights[f"{stem}.post_attention_layernorm.weight"], eps)
        gate = linear(f"{mlp}.gate_proj", h)
        up = linear(f"{mlp}.up_proj", h) * l_u
        x = x + linear(f"{mlp}.down_proj", gate / (1 + np.exp(-gate)) * up)
    x = rms_norm(x, weights["model.norm.weight"], eps)
    return x @ weights.get("lm_head.weight", weights["model.embed_tokens.weight"]).T
