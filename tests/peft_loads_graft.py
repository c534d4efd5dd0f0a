# SPDX-License-Identifier: Apache-2.0
"""HF PEFT loads the adapter folders that graft writes, and computes with them what it computed with its own.

    cmake --build build --target rewrite_adapters
    build/tests/rewrite_adapters tests/golden/data/models OUT
    python tests/peft_loads_graft.py OUT

OUT/<case>/adapter_<name> is graft's copy of the adapter that PEFT wrote for tests/golden/data/models/<case>. For each
LoRA, RoAd and IA3 folder: no tensor may be missing or unknown to PEFT, every tensor and every setting that matters must
have kept its value, and the logits of each golden request with this adapter alone must be those that were expected.
Exit status 1 when one is not. Packages: tests/golden/requirements.txt.
"""

import json
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "golden"))

import peft
import torch
from golden import MODELS, load, peft_logits, relative, run
from safetensors.torch import load_file

BOUND = 1e-6  # both sides in double; what transformers computes in float32 leaves about 1e-7
SETTINGS = ["peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "lora_bias", "variant",
            "group_size", "fan_in_fan_out"]  # fmt: skip


def check(case, name, written):
    """Returns what is wrong, and a line of measurements."""
    original = MODELS / case / f"adapter_{name}"
    config, before = (json.loads((f / "adapter_config.json").read_text()) for f in (written, original))
    if config["peft_type"] not in ("LORA", "ROAD", "IA3"):
        return None, f"{config['peft_type']} is not known to PEFT"
    if config["peft_type"] == "ROAD" and case.startswith("gpt2"):
        return None, "PEFT's RoAd takes nn.Linear alone, not Conv1D"
    mine, theirs = (load_file(f / "adapter_model.safetensors") for f in (written, original))
    if set(mine) != set(theirs):
        return f"other tensors: {sorted(set(mine) ^ set(theirs))[:4]}", ""
    for key, value in theirs.items():
        if not torch.equal(mine[key].double(), value.double()):
            return f"{key} has changed", ""

    model = load(MODELS / case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = peft.PeftConfig.from_pretrained(written)
        model = peft.PeftModel(model, loaded)
        result = peft.set_peft_model_state_dict(model, peft.load_peft_weights(written, device="cpu"))
    missing = [key for key in result.missing_keys if "lora_" in key or "road_" in key or "ia3_" in key]
    if missing or result.unexpected_keys:
        return f"missing {missing[:3]}, unexpected {result.unexpected_keys[:3]}", ""
    model = model.double().eval()

    expected = load_file(MODELS / case / "expected.safetensors")
    worst, count = 0.0, 0
    for index, line in enumerate((MODELS / case / "requests.jsonl").read_text().splitlines()):
        request = json.loads(line)
        if request.get("adapters") == [{"name": name, "weight": 1.0}]:
            worst, count = max(worst, relative(run(model, request), expected[str(index)].double())), count + 1
    if count == 0:  # never asked for alone
        request = json.loads((MODELS / case / "requests.jsonl").read_text().splitlines()[0])
        with_original = {"tokens": request["tokens"], "adapters": [{"name": name, "weight": 1.0}]}
        worst, count = relative(run(model, request), peft_logits(MODELS / case, with_original)), 1
    settings = ", ".join(f"{key} {config[key]}" for key in SETTINGS if config.get(key) not in (None, False, {}))
    if worst > BOUND:
        return f"logits differ by {worst:.1e}", ""
    return None, f"{settings}; {len(mine)} tensors, {count} requests, largest difference {worst:.1e}"


def main():
    root = Path(sys.argv[1])
    folders = sorted(root.glob("*/adapter_*"))
    wrong = 0
    for folder in folders:
        case, name = folder.parent.name, folder.name.removeprefix("adapter_")
        error, line = check(case, name, folder)
        wrong += error is not None
        print(f"{'WRONG' if error else 'ok   '} {case}/{name}: {error or line}")
    print(f"{len(folders)} folders, {wrong} wrong")
    return 1 if wrong or not folders else 0


if __name__ == "__main__":
    sys.exit(main())
