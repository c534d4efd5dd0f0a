# SPDX-License-Identifier: Apache-2.0
"""HF PEFT loads adapters made by graft:  peft_loads_samples.py WRITE_PEFT_SAMPLES MODEL_FOLDER

WRITE_PEFT_SAMPLES is the program of write_peft_samples.cpp, MODEL_FOLDER tests/golden/data/models/llama_biased (its
layers have biases, without which PEFT cannot merge lora_bias). For every folder: PEFT loads it without a warning, misses no tensor and finds none too many,
holds exactly the file's values, and writes the same file back; the adapter changes the logits, and folding it into the
weights gives the same logits. Packages: tests/golden/requirements.txt.
"""

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file

warnings.simplefilter("error", UserWarning)  # what PEFT says about odd files
warnings.simplefilter("ignore", FutureWarning)
warnings.filterwarnings("ignore", message=".*LoRA tensor.s. have invalid shape")  # PEFT's false alarm about lora_B.bias
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)


def model(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def check(model_folder, folder, scratch):
    stored = load_file(folder / "adapter_model.safetensors")
    base = model(model_folder)
    tokens = torch.arange(2, 14)[None] % base.config.vocab_size
    plain = base(tokens).logits

    adapted = peft.PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False).eval()
    result = peft.set_peft_model_state_dict(adapted, dict(stored))
    assert not result.unexpected_keys, result.unexpected_keys
    held = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
    assert held.keys() == stored.keys(), held.keys() ^ stored.keys()
    for name, tensor in stored.items():
        assert torch.equal(held[name].float(), tensor.float()), name

    if all(t.dtype == torch.float32 for t in stored.values()):
        adapted.save_pretrained(scratch, save_embedding_layers=False)
        again = (scratch / "adapter_model.safetensors").read_bytes()
        assert again == (folder / "adapter_model.safetensors").read_bytes(), "PEFT writes other bytes"

    adapted.float()
    logits = adapted(tokens).logits
    change = float((logits - plain).norm() / plain.norm())
    assert change > 1e-3, "the adapter changes nothing"
    merged = adapted.merge_and_unload()(tokens).logits
    error = float((merged - logits).norm() / logits.norm())
    assert error < 1e-4, error  # float32, the products in another order
    print(f"{folder.name}: {len(stored)} tensors, logits change by {change:.2f}, merged differs by {error:.0e}")


def main():
    program, model_folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "samples"
        subprocess.run([program, model_folder, out], check=True)
        folders = sorted(out.iterdir())
        assert len(folders) >= 12
        for folder in folders:
            check(model_folder, folder, Path(temporary) / "again" / folder.name)
    print(f"peft {peft.__version__}: {len(folders)} folders")


if __name__ == "__main__":
    main()
