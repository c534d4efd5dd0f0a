#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What native precision costs in quality, as a table for docs/performance.md:

    bench/precision.py [--graft build/bin/graft] [--model MODEL.gguf] [--also FILE.gguf] [--into docs/performance.md]

`graft eval --precision exact|native` on the same text, from the model in several formats of weights, and from files that
are taken as they are (the page's Q4_K_M is peers/llama_cpp_quantize.py's). The text is docs/architecture.md, in windows
of 175 words.
"""
import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from page import replace

ROOT = Path(__file__).resolve().parents[1]
WINDOW, WINDOWS = 175, 8  # words; some 256 tokens each
FORMATS = ["bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graft", type=Path, default=ROOT / "build/bin/graft")
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--also", type=Path, nargs="*", default=[], metavar="FILE")
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()

    def graft(*options):
        done = subprocess.run([arguments.graft, *map(str, options), "--json"], check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    words = (ROOT / "docs/architecture.md").read_text().split()
    windows = [words[k * WINDOW:(k + 1) * WINDOW] for k in range(WINDOWS)]
    lines = [json.dumps({"prompt": w[0], "completion": " " + " ".join(w[1:])}) for w in windows]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        data, model = Path(folder) / "text.jsonl", Path(folder) / "model.gguf"
        data.write_text("\n".join(lines) + "\n")
        for kind in FORMATS + arguments.also:
            if kind in FORMATS:
                graft("convert", arguments.model, model, "--type", kind)
            file, name = (model, kind) if kind in FORMATS else (kind, kind.stem)
            found = [graft("eval", "--model", file, "--data", data, "--precision", p) for p in ("exact", "native")]
            exact, native = (result["perplexity"] for result in found)
            rows.append(f"| {name.upper()} | {exact:.3f} | {native:.3f} | {100 * (native / exact - 1):+.2f} % |")
    text = "\n".join([f"{found[0]['tokens']:,} tokens in {WINDOWS} windows:", "",
                      "| weights | perplexity, exact | native | difference |", "| --- | ---: | ---: | ---: |", *rows])
    if arguments.into:
        replace(arguments.into, "precision", [text])
    else:
        print(text)


if __name__ == "__main__":
    main()
