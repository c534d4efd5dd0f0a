# SPDX-License-Identifier: Apache-2.0
"""How far PEFT's merge and unmerge of a road_2 adapter drift: the peer of tests/arithmetic/fold.cpp.

    python bench/merge_drift_peer.py
"""
import peft
import torch

torch.set_num_threads(1)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj = torch.nn.Linear(64, 64, bias=False)


for dtype in (torch.float32, torch.bfloat16):
    for cycles in (1, 1000):
        torch.manual_seed(5)
        layer = Layer()
        torch.nn.init.normal_(layer.q_proj.weight, std=0.15)
        config = peft.RoadConfig(variant="road_2", group_size=64, target_modules=["q_proj"])
        model = peft.get_peft_model(layer.to(dtype), config, autocast_adapter_dtype=True)
        for name, parameter in model.named_parameters():
            if "road_theta" in name:
                torch.nn.init.normal_(parameter, std=0.5)
            if "road_alpha" in name:
                torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
        weight = model.base_model.model.q_proj.base_layer.weight
        start = weight.detach().double().clone()
        for _ in range(cycles):
            model.merge_adapter()
            model.unmerge_adapter()
        drift = ((weight.detach().double() - start).norm() / start.norm()).item()
        print(f"PEFT {peft.__version__} {dtype} {cycles} cycles: {drift:.2g}")
