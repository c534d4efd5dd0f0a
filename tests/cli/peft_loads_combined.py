# SPDX-License-Identifier: Apache-2.0
"""Folders written by `graft combine` read back by HF PEFT, and compared with what the formulas say, in double.

    python tests/cli/peft_loads_combined.py build/bin/graft

Needs the versions of tests/golden/requirements.txt.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "golden"))
from make_arithmetic import BOTH, DATA, Tiny, hashed  # noqa: E402

graft = sys.argv[1]


def combine(op, out, *operands, flags=()):
    subprocess.run([graft, "combine", "--op", op, "--out", out, *operands, *flags], check=True, stdout=subprocess.DEVNULL)
    return out


def load(folder):
    """The change of each layer's weight, and of RoAd and IA3 the map, as PEFT understands the folder."""
    torch.manual_seed(0)
    base = Tiny()
    model = peft.PeftModel.from_pretrained(base, folder)
    result = {}
    for layer in BOTH:
        module = getattr(model.base_model.model, layer)
        if not isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer):
            continue
        before = module.base_layer.weight.detach().double().clone()
        if isinstance(module, peft.tuners.lora.LoraLayer):
            result[layer] = module.get_delta_weight("default").detach().double()
        elif isinstance(module, peft.tuners.ia3.IA3Layer):
            result[layer] = module.ia3_l["default"].detach().double()
        else:
            module.merge()
            result[layer] = module.base_layer.weight.detach().double() @ torch.linalg.pinv(before)
    return result


def check(name, found, expected, bound):
    for layer, value in expected.items():
        error = ((found[layer] - value).norm() / value.norm()).item()
        print(f"{name:28} {layer:10} {error:.1e}")
        assert error <= bound, (name, layer, error)


def total(*terms):
    layers = {layer for tensors, _ in terms for layer in tensors}
    return {layer: sum(w * t[layer] for t, w in terms if layer in t) for layer in layers}


with tempfile.TemporaryDirectory() as work:
    a, b, c = (str(DATA / name) for name in ("lora_a", "lora_b", "lora_c"))
    la, lb, lc = load(a), load(b), load(c)
    exact = total((la, 0.7), (lb, -0.4), (lc, 1.5))
    check("add", load(combine("add", f"{work}/add", f"{a}=0.7", f"{b}=-0.4", f"{c}=1.5")), exact, 1e-6)
    check("cat", load(combine("cat", f"{work}/cat", f"{a}=0.7", f"{b}=-0.4", f"{c}=1.5")), exact, 1e-6)
    small = {k: (u[:, :2] * s[:2]) @ v[:2] for k, (u, s, v) in ((k, torch.linalg.svd(d)) for k, d in exact.items())}
    flags = ("--rank", "2")
    check("svd", load(combine("svd", f"{work}/svd", f"{a}=0.7", f"{b}=-0.4", f"{c}=1.5", flags=flags)), small, 1e-6)
    check("negate", load(combine("negate", f"{work}/n", a)), total((la, -1)), 1e-6)
    check("paper-negate", load(combine("paper-negate", f"{work}/p", f"{a}=0.6", flags=("--factor", "a"))),
          total((la, -0.6)), 1e-6)
    for kind in ("ties", "ties_svd"):
        model = peft.PeftModel.from_pretrained(Tiny(), a, adapter_name="a")
        model.load_adapter(b, adapter_name="b")
        model.add_weighted_adapter(["a", "b"], [0.7, -0.4], "sum", combination_type=kind, density=0.6, svd_rank=8)
        expected = {k: getattr(model.base_model.model, k).get_delta_weight("sum").detach().double() for k in BOTH}
        flags = ("--as-peft", "--density", "0.6") + (("--rank", "8") if kind == "ties_svd" else ())
        check(f"{kind} --as-peft", load(combine(kind, f"{work}/{kind}", f"{a}=0.7", f"{b}=-0.4", flags=flags)), expected,
              5e-6)

    ia, ib = (str(DATA / name) for name in ("ia3_a", "ia3_b"))
    va, vb = load(ia), load(ib)
    expected = {k: 1 + 0.7 * (va[k] - 1) - 0.4 * (vb[k] - 1) for k in va}
    check("IA3 add", load(combine("add", f"{work}/ia3", f"{ia}=0.7", f"{ib}=-0.4")), expected, 1e-6)
    check("IA3 compose", load(combine("compose", f"{work}/ia3c", ia, ib)), {k: va[k] * vb[k] for k in va}, 1e-6)

    roads = []
    for name, variant in (("r1", "road_1"), ("r2", "road_2"), ("r4", "road_4")):
        config = peft.RoadConfig(variant=variant, group_size=2, target_modules=["q_proj"])
        model = peft.get_peft_model(Tiny(), config)
        for path, parameter in model.named_parameters():
            if "road_" in path:
                mean = 1.0 if "alpha" in path else 0.0
                parameter.data = hashed(f"{name}/{path}", parameter.shape, mean=mean, std=0.3)
        model.save_pretrained(f"{work}/{name}")
        roads.append(f"{work}/{name}")
    r = [load(road)["q_proj"] for road in roads]
    one = torch.eye(10, dtype=torch.float64)
    # PEFT's merge rounds to f32 and the map is found by a pseudo-inverse of the 10 x 12 weight
    summed = one + 0.7 * (r[0] - one) - 0.4 * (r[1] - one) + 0.3 * (r[2] - one)
    check("RoAd add", load(combine("add", f"{work}/rs", f"{roads[0]}=0.7", f"{roads[1]}=-0.4", f"{roads[2]}=0.3")),
          {"q_proj": summed}, 1e-5)
    check("RoAd compose", load(combine("compose", f"{work}/rc", *roads)), {"q_proj": r[2] @ r[1] @ r[0]}, 1e-5)
    check("RoAd inverse", load(combine("inverse", f"{work}/ri", roads[1])), {"q_proj": torch.linalg.inv(r[1])}, 1e-4)
print(f"PEFT {peft.__version__} reads them all")
