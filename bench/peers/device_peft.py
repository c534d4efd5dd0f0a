#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""transformers + peft on a GPU: the rows that bench/cuda_model.cu and bench/cuda_train.cu have of graft, one JSON object
per line.

    bench/peers/device_peft.py [--small] [--device cpu] [PART...]

PART is none, lora or road (decoding of 32 requests with contexts of 512 tokens, LLaMA-2-7B's shapes; each with a module
of its own through `adapter_names`), train-lora, train-road (steps of 32 x 128 tokens, SmolLM2's shapes), or one of these
with -compiled behind it, through torch.compile. Without names: all that are not compiled.

Both sides have the same shapes and made-up weights in bf16. SDPA; adapters in bf16; decoding with both kinds of cache,
greedy, the model called directly; AdamW in one kernel. --small: to see that it runs, on a machine without a GPU.
"""
import argparse
import contextlib
import json
import statistics
import time
import traceback

import peft
import torch
import transformers

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SHAPES = {
    "LLaMA-2-7B": dict(num_hidden_layers=32, hidden_size=4096, intermediate_size=11008, num_attention_heads=32,
                       num_key_value_heads=32, vocab_size=32000, tie_word_embeddings=False),
    "SmolLM2-135M": dict(num_hidden_layers=30, hidden_size=576, intermediate_size=1536, num_attention_heads=9,
                         num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True),
    "small": dict(num_hidden_layers=2, hidden_size=128, intermediate_size=192, num_attention_heads=4,
                  num_key_value_heads=2, vocab_size=96, tie_word_embeddings=False),
}
PARTS = ["none", "lora", "road", "train-lora", "train-road"]


def emit(**row):
    print(json.dumps(row), flush=True)


class Bench:
    def __init__(self, small, device):
        self.small, self.device = small, torch.device(device)

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def model(self, name):
        config = transformers.LlamaConfig(max_position_embeddings=4096, rms_norm_eps=1e-5, **SHAPES[name])
        with self.device:
            return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")

    def config(self, kind):
        common = {"target_modules": TARGETS, "task_type": "CAUSAL_LM"}
        if kind == "lora":
            return peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, init_lora_weights=False, **common)
        return peft.RoadConfig(variant="road_1", group_size=64, init_weights=False, **common)

    def adapted(self, base, kind, count):
        """With `count` modules, named lora0, lora1, ..."""
        with self.device:
            model = peft.get_peft_model(base, self.config(kind), adapter_name=f"{kind}0")
            for k in range(1, count):
                model.add_adapter(f"{kind}{k}", self.config(kind))
        return model.to(torch.bfloat16)

    def decode(self, kind, compiled):
        name, batch, past, steps = ("small", 4, 16, 4) if self.small else ("LLaMA-2-7B", 32, 512, 16)
        base = self.model(name).eval()
        adapted = kind != "none"
        model = self.adapted(base, kind, batch).eval() if adapted else base
        names = [f"{kind}{k}" for k in range(batch)]
        forward = torch.compile(base, mode="reduce-overhead", dynamic=False) if compiled else base
        for cache_name in ("static",) if compiled else ("dynamic", "static"):
            cache = transformers.DynamicCache(config=base.config)
            if cache_name == "static":
                cache = transformers.StaticCache(config=base.config, max_cache_len=past + steps)
            place = past - steps // 2  # so that the steps' contexts are `past` long on the average
            ids = torch.randint(base.config.vocab_size, (batch, place), device=self.device)
            seconds = []

            def step(call, ids, first):
                positions = torch.arange(first, first + ids.shape[1], device=self.device).unsqueeze(0)
                logits = call(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1,
                              position_ids=positions).logits
                return logits[:, -1].argmax(-1, keepdim=True)

            hooks = model._enable_peft_forward_hooks(adapter_names=names) if adapted else contextlib.nullcontext()
            with torch.inference_mode(), hooks:
                next_ids = step(base, ids, 0).clone()
                for k in range(steps):
                    self.wait()
                    start = time.perf_counter()
                    next_ids = step(forward, next_ids, place + k).clone()
                    self.wait()
                    seconds.append(time.perf_counter() - start)
            median = statistics.median(seconds[steps // 4:])  # the first ones choose algorithms, or compile
            emit(part="peer decode", model=name, adapters={"road": "road 1"}.get(kind, kind), batch=batch, context=past,
                 modules=batch if adapted else 0, cache=cache_name, compiled=compiled, seconds=median,
                 tokens_per_second=batch / median)

    def train(self, kind, compiled):
        name, batch, length, warm, steps = ("small", 2, 12, 1, 2) if self.small else ("SmolLM2-135M", 32, 128, 5, 20)
        base = self.model(name)
        model = self.adapted(base, kind, 1).train()
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True)
        forward = torch.compile(model, dynamic=False) if compiled else model
        ids = torch.randint(base.config.vocab_size, (batch, length), device=self.device)
        seconds, losses = [], []
        for k in range(warm + steps):
            self.wait()
            if k == warm and self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            loss = forward(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            self.wait()
            seconds.append(time.perf_counter() - start)
        median = statistics.median(seconds[warm:])
        memory = {}
        if self.device.type == "cuda":
            memory = {"memory_bytes": torch.cuda.max_memory_reserved(), "allocated_bytes": torch.cuda.max_memory_allocated()}
        emit(part="peer training", model=name, adapters={"road": "road 1"}.get(kind, kind), batch=batch, tokens=length,
             compiled=compiled, seconds=median, tokens_per_second=batch * length / median, first_loss=losses[0],
             last_loss=losses[-1], **memory)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("parts", nargs="*", metavar="PART")
    arguments = parser.parse_args()
    emit(part="peers", torch=torch.__version__, transformers=transformers.__version__, peft=peft.__version__,
         gpu=torch.cuda.get_device_name() if arguments.device == "cuda" else arguments.device)
    bench, failed = Bench(arguments.small, arguments.device), False
    for part in arguments.parts or PARTS:
        compiled = part.endswith("-compiled")
        kind = part.removesuffix("-compiled")
        try:
            if kind.startswith("train-"):
                bench.train(kind.removeprefix("train-"), compiled)
            else:
                bench.decode(kind, compiled)
        except Exception as error:  # the other parts can be measured
            traceback.print_exc()
            emit(part="peer failed", what=part, error=f"{type(error).__name__}: {error}")
            failed = True
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
