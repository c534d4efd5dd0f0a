# SPDX-License-Identifier: Apache-2.0
"""llama.cpp through llama-cpp-python's C calls, as a worker of run.py: llama.cpp's defaults (repacked weights where it
has them, flash attention by its own choice, f16 cache), GRAFT_THREADS threads, one batch for requests with the same
adapter.

A context has one set of adapters at a time. Requests with different ones are therefore computed adapter by adapter,
each in a context that keeps its adapter, which spares the switching. "apart": true instead computes as many adapters at
a time as there are threads, each with one thread."""
import concurrent.futures
import ctypes
import os
import time

import llama_cpp as l
import numpy
from worker import by_adapter, in_order, memory, serve

THREADS = int(os.environ["GRAFT_THREADS"])
CONTEXT = 2048  # tokens of all sequences


class Context:
    def __init__(self, model, vocabulary, threads, adapter=None):
        params = l.llama_context_default_params()
        params.n_ctx = params.n_batch = CONTEXT
        params.n_seq_max = 8
        params.kv_unified = True  # sequences share the cache, as in llama.cpp's server
        params.n_threads = params.n_threads_batch = threads
        self.context, self.vocabulary = l.llama_init_from_model(model, params), vocabulary
        if adapter:
            adapters, scales = (l.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
            l.llama_set_adapters_lora(self.context, adapters, 1, scales)
        self.batch = l.llama_batch_init(CONTEXT, 0, 1)

    def step(self, inputs, places):
        """The best token behind each sequence's inputs, which start at `places`."""
        batch, n, last = self.batch, 0, []
        for sequence, (tokens, place) in enumerate(zip(inputs, places)):
            for k, token in enumerate(tokens):
                batch.token[n], batch.pos[n] = token, place + k
                batch.n_seq_id[n], batch.seq_id[n][0] = 1, sequence
                batch.logits[n] = k + 1 == len(tokens)
                n += 1
            last.append(n - 1)
        batch.n_tokens = n
        if l.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        return [int(numpy.ctypeslib.as_array(l.llama_get_logits_ith(self.context, row), (self.vocabulary,)).argmax())
                for row in last]

    def generate(self, prompts, new):
        l.llama_memory_clear(l.llama_get_memory(self.context), True)
        start = time.perf_counter()
        made = [[token] for token in self.step(prompts, [0] * len(prompts))]
        middle = time.perf_counter()
        for k in range(new - 1):
            tokens = self.step([row[-1:] for row in made], [len(prompt) + k for prompt in prompts])
            for row, token in zip(made, tokens):
                row.append(token)
        return made, middle - start, time.perf_counter() - middle


class Worker:
    def open(self, call):
        self.quiet = l.llama_log_callback(lambda *_: None)
        l.llama_log_set(self.quiet, None)
        l.llama_backend_init()
        self.model = l.llama_model_load_from_file(call["model"].encode(), l.llama_model_default_params())
        self.vocabulary = l.llama_vocab_n_tokens(l.llama_model_get_vocab(self.model))
        self.apart = call.get("apart", False)
        adapters = {name: l.llama_adapter_lora_init(self.model, path.encode())
                    for name, path in call["adapters"].items()}
        threads = 1 if self.apart else THREADS
        self.contexts = {None: Context(self.model, self.vocabulary, THREADS)}
        for name, adapter in adapters.items():
            self.contexts[name] = Context(self.model, self.vocabulary, threads, adapter)
        return {"llama-cpp-python": l.__version__, "system": l.llama_print_system_info().decode().strip()}

    def tokens(self, call):
        text, room = call["text"].encode(), len(call["text"]) + 8
        out = (l.llama_token * room)()
        count = l.llama_tokenize(l.llama_model_get_vocab(self.model), text, len(text), out, room, True, False)
        return {"tokens": list(out[:count])}

    def generate(self, call):
        groups = by_adapter(call["use"])

        def run(name):
            return self.contexts[name].generate([call["prompts"][k] for k in groups[name]], call["new"])

        start = time.perf_counter()
        if self.apart:
            with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
                results = list(pool.map(run, groups))
        else:
            results = [run(name) for name in groups]
        seconds = time.perf_counter() - start
        # the parts of computations at the same time do not add up to the whole: they share it
        prefill, decode = sum(r[1] for r in results), sum(r[2] for r in results)
        share = seconds / (prefill + decode)
        return {"prefill": prefill * share, "decode": decode * share,
                "tokens": in_order(groups, [r[0] for r in results])}

    def load(self, call):
        start = time.perf_counter()
        self.open(call)
        prompt = self.tokens(call)["tokens"]
        tokens = self.generate({"prompts": [prompt], "use": [None], "new": 1})["tokens"]
        return {"seconds": time.perf_counter() - start, "tokens": tokens, "memory": memory()}


if __name__ == "__main__":
    serve(Worker())
