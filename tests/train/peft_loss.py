# SPDX-License-Identifier: Apache-2.0
"""The loss of an adapter folder in transformers + peft, as `graft eval` prints it for the same data.

    python peft_loss.py MODEL_FOLDER ADAPTER_FOLDER DATA.jsonl
"""

import json
import sys

import peft
import torch
import transformers


def main(base, adapter, data):
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    model = peft.PeftModel.from_pretrained(model, adapter).eval()
    loss, tokens = 0.0, 0
    for line in map(json.loads, open(data, encoding="utf-8")):
        prompt = tokenizer(line["prompt"])["input_ids"]
        completion = tokenizer(line["completion"], add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0].double().log_softmax(-1)
        for place, token in enumerate(completion, start=len(prompt)):
            loss -= logits[place - 1, token].item()
        tokens += len(completion)
    print(json.dumps({"lines_of": data, "tokens": tokens, "loss": loss / tokens}))


if __name__ == "__main__":
    main(*sys.argv[1:])
