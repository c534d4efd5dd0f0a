# SPDX-License-Identifier: Apache-2.0
"""CTranslate2 as a worker of run.py: GRAFT_THREADS threads, its own choice of kernels, one batch. It knows no adapters
(a LoRA is merged before a model is converted), so `use` is null for every request."""
import json
import os
import time
from pathlib import Path

import ctranslate2
from worker import serve

THREADS = int(os.environ["GRAFT_THREADS"])


class Worker:
    def open(self, call):
        self.words = json.loads((Path(call["model"]) / "vocabulary.json").read_text(encoding="utf-8"))
        self.generator = ctranslate2.Generator(call["model"], compute_type=call["compute_type"], intra_threads=THREADS)
        return {"ctranslate2": ctranslate2.__version__, "compute_type": self.generator.compute_type}

    def generate(self, call):
        times = []  # of every request's every token

        def note(_):
            times.append(time.perf_counter())
            return False

        start = time.perf_counter()
        prompts = [[self.words[token] for token in prompt] for prompt in call["prompts"]]
        # the prompt is computed at once but for its last token, with which decoding begins
        results = self.generator.generate_batch(prompts, include_prompt_in_result=False, max_length=call["new"],
                                                end_token=[], callback=note)
        end = time.perf_counter()
        return {"prefill": times[0] - start, "decode": end - times[0],
                "tokens": [result.sequences_ids[0] for result in results]}


if __name__ == "__main__":
    serve(Worker())
