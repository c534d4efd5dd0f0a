# SPDX-License-Identifier: Apache-2.0
"""Writes data/arithmetic: adapters on two small linear layers, and what PEFT's add_weighted_adapter makes of them.

    python make_arithmetic.py

expected.safetensors holds, per combination and layer, the delta of LoRA (scaling times B A) or the vector of IA3.
Then it checks, against the PEFT that is installed, each wrong result of add_weighted_adapter that docs/arithmetic.md
speaks of, so that the page is true or this script fails.
"""

import shutil
import warnings
from pathlib import Path

import peft
import torch
from golden import hashed
from safetensors.torch import save_file

warnings.filterwarnings("ignore")
torch.set_num_threads(1)
DATA = Path(__file__).resolve().parent / "data" / "arithmetic"


class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = torch.nn.Linear(12, 10)
        self.down_proj = torch.nn.Linear(10, 8)

    def forward(self, x):
        return self.down_proj(self.q_proj(x))


BOTH = ["q_proj", "down_proj"]
CONFIGS = {
    "lora_a": peft.LoraConfig(r=4, lora_alpha=8, target_modules=BOTH),
    "lora_b": peft.LoraConfig(r=4, lora_alpha=2, target_modules=BOTH),
    "lora_c": peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"]),
    "ia3_a": peft.IA3Config(target_modules=BOTH, feedforward_modules=["down_proj"]),
    "ia3_b": peft.IA3Config(target_modules=BOTH, feedforward_modules=["down_proj"]),
}


def model_with(*names, **replaced):
    """The base with these adapters, filled from hashes of their names."""
    model = None
    for name in names:
        config = replaced.get(name, CONFIGS[name])
        if model is None:
            model = peft.get_peft_model(Tiny(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    for path, parameter in model.named_parameters():
        for name in names:
            if f".{name}" in path:
                mean = 1.0 if "ia3" in path else 0.0
                parameter.data = hashed(path, parameter.shape, mean=mean, std=0.5)
    return model


def deltas(model, name):
    """Per layer, what PEFT adds to the weight."""
    result = {}
    for layer in BOTH:
        module = getattr(model.base_model.model, layer)
        if name in module.lora_A:
            result[layer] = module.get_delta_weight(name).detach().contiguous()
    return result


def lora_combination(names, weights, kind, **options):
    model = model_with(*names)
    model.add_weighted_adapter(list(names), list(weights), "sum", combination_type=kind, **options)
    return deltas(model, "sum")


def main():
    shutil.rmtree(DATA, ignore_errors=True)
    for names in (("lora_a", "lora_b", "lora_c"), ("ia3_a", "ia3_b")):
        model_with(*names).save_pretrained(str(DATA))  # a folder for each
    for readme in DATA.rglob("README.md"):
        readme.unlink()

    expected = {}

    def record(key, tensors):
        for layer, tensor in tensors.items():
            expected[f"{key}/{layer}"] = tensor.clone()

    pair, weights = ("lora_a", "lora_b"), (0.7, -0.4)
    record("cat", lora_combination(("lora_a", "lora_b", "lora_c"), (0.7, -0.4, 1.5), "cat"))
    record("linear", lora_combination(pair, weights, "linear"))
    record("svd", lora_combination(pair, weights, "svd"))
    record("svd_rank_2", lora_combination(("lora_a", "lora_b", "lora_c"), (0.7, -0.4, 1.5), "svd", svd_rank=2))
    for majority in ("total", "frequency"):
        for density in (0.3, 0.6):
            for kind in ("ties", "ties_svd"):
                options = {"density": density, "majority_sign_method": majority, "svd_rank": 8}
                record(f"{kind}_{majority}_{density}", lora_combination(pair, weights, kind, **options))
    for density in (0.3, 0.6):
        for kind in ("magnitude_prune", "magnitude_prune_svd"):
            record(f"{kind}_{density}", lora_combination(pair, weights, kind, density=density, svd_rank=8))
    model = model_with("ia3_a", "ia3_b")
    model.add_weighted_adapter(["ia3_a", "ia3_b"], [0.3, 0.7], "sum")
    record("ia3", {layer: getattr(model.base_model.model, layer).ia3_l["sum"].data for layer in BOTH})
    save_file(expected, str(DATA / "expected.safetensors"))
    check_what_the_docs_say()


def check_what_the_docs_say():
    def exact(model, names, weights, layer="q_proj"):
        return sum(w * deltas(model, n)[layer] for n, w in zip(names, weights))

    def ratio(a, b):
        return (a.norm() / b.norm()).item()

    # rank-stabilised LoRA: the result inherits use_rslora, so its scaling is sqrt(r) instead of 1
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=BOTH, use_rslora=True)
    model = model_with("lora_a", "lora_b", lora_a=config)
    model.add_weighted_adapter(["lora_a", "lora_b"], [1.0, 1.0], "sum", combination_type="cat")
    found = ratio(deltas(model, "sum")["q_proj"], exact(model, ["lora_a", "lora_b"], [1, 1]))
    assert abs(found - 8**0.5) < 1e-4, found

    # lora_bias: the new adapter has one, which stays zero
    configs = {n: peft.LoraConfig(r=4, lora_alpha=8, target_modules=BOTH, lora_bias=True) for n in ("lora_a", "lora_b")}
    model = model_with("lora_a", "lora_b", **configs)
    model.add_weighted_adapter(["lora_a", "lora_b"], [1.0, 1.0], "sum", combination_type="cat")
    layer = model.base_model.model.q_proj
    bias, wanted = layer.lora_B["sum"].bias, 2 * (layer.lora_B["lora_a"].bias + layer.lora_B["lora_b"].bias)
    assert bias.norm() == 0 and wanted.norm() > 1

    # the svd family once applied the scaling twice; it no longer does
    model = model_with("lora_a", "lora_b")
    model.add_weighted_adapter(["lora_a", "lora_b"], [1.0, 1.0], "sum", combination_type="svd", svd_rank=8)
    found = ratio(deltas(model, "sum")["q_proj"], exact(model, ["lora_a", "lora_b"], [1, 1]))
    assert abs(found - 1) < 1e-5, found

    # linear: cross terms
    model.add_weighted_adapter(["lora_a", "lora_b"], [1.0, 1.0], "linear", combination_type="linear")
    wanted = exact(model, ["lora_a", "lora_b"], [1, 1])
    found = ratio(deltas(model, "linear")["q_proj"] - wanted, wanted)
    assert found > 0.5, found

    # a name that is taken: nothing happens, and nothing is said
    before = deltas(model, "sum")["q_proj"].clone()
    model.add_weighted_adapter(["lora_a"], [5.0], "sum", combination_type="linear")
    assert torch.equal(before, deltas(model, "sum")["q_proj"])

    # of one adapter, any method is linear
    model.add_weighted_adapter(["lora_a"], [1.0], "one", combination_type="magnitude_prune", density=0.2)
    assert (deltas(model, "one")["q_proj"] - deltas(model, "lora_a")["q_proj"]).norm() < 1e-5

    # IA3 is not centred on 1: two modules that do nothing, weights 1 and 1, double every activation
    model = model_with("ia3_a", "ia3_b")
    for parameter in (p for n, p in model.named_parameters() if "ia3_l" in n):
        parameter.data.fill_(1.0)
    model.add_weighted_adapter(["ia3_a", "ia3_b"], [1.0, 1.0], "sum")
    found = model.base_model.model.q_proj.ia3_l["sum"].mean().item()
    assert found == 2, found

    # RoAd has none
    road = peft.get_peft_model(Tiny(), peft.RoadConfig(target_modules=["q_proj"], group_size=2))
    assert not hasattr(road.base_model, "add_weighted_adapter")
    print(f"PEFT {peft.__version__}: all as docs/arithmetic.md says")


if __name__ == "__main__":
    main()
