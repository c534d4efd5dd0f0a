# SPDX-License-Identifier: Apache-2.0
"""transformers + peft on torch, as a worker of run.py. One forward takes requests with different adapters through PEFT's
`adapter_names`. GRAFT_THREADS threads; SDPA; adapters in the base's type; greedy steps call the model directly, which
costs less than `generate`. With "compile": true the forward goes through torch.compile."""
import contextlib
import os
import time

import torch
import peft
import transformers
from worker import memory, serve

THREADS = int(os.environ["GRAFT_THREADS"])
torch.set_num_threads(THREADS)
torch.set_num_interop_threads(1)
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Worker:
    def open(self, call):
        dtype = getattr(torch, call["dtype"])
        self.base = transformers.AutoModelForCausalLM.from_pretrained(
            call["model"], dtype=dtype, attn_implementation="sdpa").eval()
        self.model, self.forward = self.base, self.base
        self.compile = call.get("compile", False)
        for name, folder in call["adapters"].items():
            if self.model is self.base:
                self.model = peft.PeftModel.from_pretrained(self.base, folder, adapter_name=name)
            else:
                self.model.load_adapter(folder, adapter_name=name)
        self.model.to(dtype).eval()
        if self.compile:
            torch._dynamo.config.recompile_limit = 64  # beyond it nothing is compiled: every batch and length is a shape
            self.forward, self.caches = torch.compile(self.base, dynamic=False), {}
        return {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
                "dtype": call["dtype"], "compile": self.compile, "threads": torch.get_num_threads()}

    def cache(self, requests, length):
        """Compiled code is for one cache: every size has its own, which stays."""
        if not self.compile:
            return transformers.DynamicCache(config=self.base.config)
        if (requests, length) not in self.caches:
            config = self.base.config
            cache = transformers.StaticCache(config=config, max_cache_len=length)
            cache.early_initialization(requests, config.num_key_value_heads, config.head_dim, self.base.dtype,
                                       self.base.device)
            self.caches[requests, length] = cache
        self.caches[requests, length].reset()
        return self.caches[requests, length]

    def generate(self, call):
        names = [name or "__base__" for name in call["use"]]
        mixed = self.model is not self.base
        with torch.inference_mode(), (
            self.model._enable_peft_forward_hooks(adapter_names=names) if mixed else contextlib.nullcontext()
        ):
            ids = torch.tensor(call["prompts"])
            cache = self.cache(len(ids), ids.shape[1] + call["new"])
            made, place = [], 0

            def step(ids):
                nonlocal place
                positions = torch.arange(place, place + ids.shape[1])
                logits = self.forward(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1,
                                      position_ids=positions.unsqueeze(0)).logits
                place += ids.shape[1]
                made.append(logits[:, -1].argmax(-1, keepdim=True))

            start = time.perf_counter()
            step(ids)
            middle = time.perf_counter()
            for _ in range(call["new"] - 1):
                step(made[-1])
            end = time.perf_counter()
        return {"prefill": middle - start, "decode": end - middle, "tokens": torch.cat(made, 1).tolist()}

    def load(self, call):
        tokenizer = transformers.AutoTokenizer.from_pretrained(call["model"])
        start = time.perf_counter()
        self.open(call)
        prompt = tokenizer(call["text"])["input_ids"]
        tokens = self.generate({"prompts": [prompt], "use": [None], "new": 1})["tokens"]
        return {"seconds": time.perf_counter() - start, "tokens": tokens, "memory": memory()}

    def train(self, call):
        self.ids = torch.tensor(call["sequences"])
        options = {"target_modules": TARGETS, "task_type": "CAUSAL_LM"}
        if call["method"] == "lora":
            config = peft.LoraConfig(r=16, lora_alpha=32, lora_dropout=0.0, **options)
        else:
            config = peft.RoadConfig(variant="road_1", group_size=64, **options)
        self.model = peft.get_peft_model(self.base, config, autocast_adapter_dtype=False).train()
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-3, weight_decay=0.0)
        if call["recompute"]:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        if self.compile:
            self.model.compile(dynamic=False)
        return {"parameters": sum(p.numel() for p in self.parameters)}

    def step(self, _):
        start = time.perf_counter()
        loss = self.model(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        return {"seconds": time.perf_counter() - start, "loss": value, "memory": memory()}


if __name__ == "__main__":
    serve(Worker())
