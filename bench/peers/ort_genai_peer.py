# SPDX-License-Identifier: Apache-2.0
"""onnxruntime-genai as a worker of run.py: GRAFT_THREADS threads, a cache of the length that is needed, one batch for
requests with the same adapter. A generator has one adapter at a time, so requests with different ones go one adapter
after the other. On threads of their own they would be slower: a step does not let other Python threads run."""
import json
import os
import time

import numpy
import onnxruntime
import onnxruntime_genai as og
from worker import by_adapter, in_order, serve

THREADS = int(os.environ["GRAFT_THREADS"])


class Worker:
    def open(self, call):
        config = og.Config(call["model"])
        config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": THREADS}}}}))
        self.model = og.Model(config)
        self.adapters = og.Adapters(self.model)
        for name, path in call["adapters"].items():
            self.adapters.load(path, name)
        return {"onnxruntime-genai": og.__version__, "onnxruntime": onnxruntime.__version__}

    def run(self, name, prompts, new):
        params = og.GeneratorParams(self.model)
        params.set_search_options(batch_size=len(prompts), max_length=len(prompts[0]) + new, do_sample=False)
        generator = og.Generator(self.model, params)
        if name:
            generator.set_active_adapter(self.adapters, name)
        start = time.perf_counter()
        generator.append_tokens(numpy.array(prompts, numpy.int32))
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(new - 1):
            generator.generate_next_token()
        end = time.perf_counter()
        if generator.token_count() != len(prompts[0]) + new:
            raise RuntimeError("a request has ended early")
        made = [generator.get_sequence(k)[-new:].tolist() for k in range(len(prompts))]
        return made, middle - start, end - middle

    def generate(self, call):
        groups = by_adapter(call["use"])
        results = [self.run(name, [call["prompts"][k] for k in requests], call["new"])
                   for name, requests in groups.items()]
        return {"prefill": sum(r[1] for r in results), "decode": sum(r[2] for r in results),
                "tokens": in_order(groups, [r[0] for r in results])}


if __name__ == "__main__":
    serve(Worker())
