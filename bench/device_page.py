#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The GPU's tables and plots of docs/performance-gpu.md, from what bench/device.sh has found:

    bench/device_page.py build-device/results/device.json --into docs/performance-gpu.md

Of several files the last word holds, row by row: stages may have been run on different days. Without a file every cell
says "not measured".
"""
import argparse
import json
from pathlib import Path

from page import replace
from plot import lines, table

MISSING = "not measured"
# what the rows of bench/cuda_model.cu are called there, what they are called here, and the aim as a word
DECODE = [("none", "none", "at least 80 % of the copy"),
          ("none, kernels launched one by one", "none, kernels launched one by one", ""),
          ("loaded and not used", "loaded and not used, beside a model compiled without adapters", "at most 0.5 %"),
          ("road 1", "32 RoAd 1", "floor + 1 point"),
          ("road 2", "32 RoAd 2", "floor + 1 point"),
          ("road 4", "32 RoAd 4", "floor + 1 point"),
          ("ia3", "32 (IA)³", "floor + 1 point"),
          ("pedro", "32 PEDRO", "floor + 1 point"),
          ("lora", "32 LoRA of rank 16", "floor + 5 points"),
          ("lora, ranks 8 to 64", "32 LoRA of ranks 8, 16, 32, 64", "floor + 6 points"),
          ("half road 1, half lora", "16 RoAd 1, 16 LoRA of rank 16", "floor + 4 points"),
          ("one lora for all", "one LoRA of rank 16 for all", "at most 2 %")]
PREFILL = [("none", "none", "at least 75 % of the products alone"),
           ("road 1", "RoAd 1", "at most 2 %"), ("road 2", "RoAd 2", "at most 2 %"), ("road 4", "RoAd 4", "at most 2 %"),
           ("ia3", "(IA)³", "at most 2 %"), ("pedro", "PEDRO", "at most 2 %"),
           ("lora", "LoRA of rank 16", "at most 8 %")]
PEERS = [("none", "no adapter"), ("lora", "32 LoRA of rank 16"), ("road 1", "32 RoAd 1")]
TRAINING = [("lora", "LoRA of rank 16"), ("road 1", "RoAd 1")]
CURVES = [("none", "merged LoRA (no adapter at all)"), ("lora", "LoRA of rank 16"), ("road 1", "RoAd 1"), ("pedro", "PEDRO")]


class Results:
    def __init__(self, paths):
        self.about, self.status, self.rows, self.dates = {}, {}, [], set()
        for path in paths:
            found = json.loads(Path(path).read_text())
            self.about |= {key: found[key] for key in ("gpu", "driver", "nvcc", "commit") if found.get(key)}
            self.status |= found["status"]
            self.rows += found["rows"]
            self.dates.add(found["date"][:10])

    def all(self, part, **wanted):
        return [row for row in self.rows if row["part"] == part and all(row.get(k) == v for k, v in wanted.items())]

    def last(self, part, **wanted):
        """The newest such row, or one that has nothing."""
        return (self.all(part, **wanted) or [{}])[-1]

    def fastest(self, part, **wanted):
        return min(self.all(part, **wanted), key=lambda row: row["seconds"], default={})


def number(row, key, scale=1.0, digits=1):
    return MISSING if row.get(key) is None else f"{row[key] * scale:.{digits}f}"


def judged(row, word):
    """The aim, and whether the row reaches it."""
    for key, aim in row.items():
        if key.endswith(" at least"):
            return f"{word}: {'reached' if row[key.removesuffix(' at least')] >= aim else 'missed'}"
        if key.endswith(" at most"):
            return f"{word}: {'reached' if row[key.removesuffix(' at most')] <= aim else 'missed'}"
    return word


def spread(row):
    text = number(row, "overhead", 100)
    return f"{text} ({100 * row['lowest']:.1f} to {100 * row['highest']:.1f})" if "lowest" in row else text


def ratio(ours, theirs, aim):
    if not ours or not theirs:
        return MISSING, aim
    value = theirs["seconds"] / ours["seconds"]
    return f"{value:.2f}x", f"{aim}: {'reached' if value >= float(aim.rstrip('x')) else 'missed'}" if aim else ""


def checks(results):
    rows = []
    for name, what in (("tests", "tests"), ("memcheck", "compute-sanitizer memcheck, leaks too"),
                       ("synccheck", "synccheck"), ("racecheck", "racecheck"), ("initcheck", "initcheck")):
        codes = [code for key, code in results.status.items() if key.split("/")[0] == name]
        bad = sorted(key for key, code in results.status.items() if key.split("/")[0] == name and code not in (0, 77))
        rows.append([what, MISSING if not codes else "no error" if not bad else "not clean: " + ", ".join(bad)])
    return table(["on the device", "found"], rows)


def decode(results):
    rows = []
    for name, label, word in DECODE:
        row = results.last("decode", adapters=name)
        rows.append([label, number(row, "seconds", 1e3, 3), number(row, "tokens_per_second", 1, 0),
                     number(row, "bytes", 1e-9) if name not in ("none, kernels launched one by one", "loaded and not used") else "",
                     number(row, "share_of_copy_bandwidth", 100) if name == "none" else "",
                     "" if name == "none" else spread(row), number(row, "overhead_floor", 100) if " " in word and "floor" in word else "",
                     judged(row, word)])
    return table(["requests' adapters", "ms", "tokens/s", "GB moved", "% of copy bandwidth", "overhead, %", "floor, %", "aim"], rows)


def prefill(results):
    rows = []
    for name, label, word in PREFILL:
        row = results.last("prefill", adapters=name)
        plain = name == "none"
        rows.append([label, number(row, "seconds", 1e3), number(row, "tokens_per_second", 1, 0),
                     number(row, "model_flops_per_second", 1e-12, 0) if plain else "",
                     number(row, "products_flops_per_second", 1e-12, 0) if plain else "",
                     number(row, "share_of_products", 100) if plain else "", "" if plain else spread(row), judged(row, word)])
    return table(["prompts' adapters", "ms", "tokens/s", "TFLOP/s", "products alone, TFLOP/s", "% of products alone",
                  "overhead, %", "aim"], rows)


def peers(results):
    rows = []
    for name, label in PEERS:
        ours, theirs = results.last("decode", adapters=name), results.fastest("peer decode", adapters=name)
        how = f"{theirs['cache']} cache{', compiled' if theirs['compiled'] else ''}" if theirs else ""
        rows.append([label, number(ours, "tokens_per_second", 1, 0), number(theirs, "tokens_per_second", 1, 0), how,
                     *ratio(ours, theirs, "5x" if name != "none" else "")])
    return table(["32 requests, context 512", "graft, tokens/s", "transformers + peft, tokens/s", "at its best",
                  "ratio", "aim"], rows)


def training(results):
    rows = []
    for name, label in TRAINING:
        ours, theirs = results.last("training", adapters=name, recompute="no"), results.fastest("peer training", adapters=name)
        share, aim = MISSING, "at most 70 % of the peer's memory"
        if ours and theirs.get("memory_bytes"):
            value = 100 * ours["memory_bytes"] / theirs["allocated_bytes"]
            share, aim = f"{value:.0f} %", f"{aim}: {'reached' if value <= 70 else 'missed'}"
        speed, faster = ratio(ours, theirs, "1.5x")
        rows.append([label, number(ours, "seconds", 1e3), number(theirs, "seconds", 1e3), speed, faster,
                     number(ours, "memory_bytes", 1e-6, 0), number(theirs, "allocated_bytes", 1e-6, 0),
                     number(theirs, "memory_bytes", 1e-6, 0), share, aim])
        again = results.last("training", adapters=name, recompute="yes")
        rows.append([label + ", layers recomputed", number(again, "seconds", 1e3), "", "", "",
                     number(again, "memory_bytes", 1e-6, 0), "", "", "", ""])
    return table(["32 x 128 tokens", "graft, ms", "peer, ms", "ratio", "aim", "graft, MB", "peer, MB allocated",
                  "peer, MB reserved", "graft's of the allocated", "aim"], rows)


def curve(results, part, key, label):
    """A table of tokens/s and the same as (x, y) by name."""
    places = sorted({row[key] for row in results.all(part)})
    rows, series = [], {}
    for name, title in CURVES:
        values = {row[key]: row["tokens_per_second"] for row in results.all(part, adapters=name)}
        rows.append([title] + [f"{values[x]:.0f}" if x in values else MISSING for x in places or [None]])
        series[title] = sorted(values.items())
    return table([label] + [str(x) for x in places or ["tokens/s"]], rows), series


def operations(results):
    rows = []
    for row in results.all("product"):
        rows.append([f"{row['shape']}, {row['weights']}, {row['rows']} rows", number(row, "seconds", 1e6),
                     number(row, "share_of_copy_bandwidth", 100, 0), number(row, "flops_per_second", 1e-12, 0)])
    for row in results.all("operation"):
        rows.append([f"{row['operation']}, {row['rows']} x {row['cols']}", number(row, "seconds", 1e6),
                     number(row, "share_of_copy_bandwidth", 100, 0), ""])
    rows = rows or [["products, norms, activations"] + 3 * [MISSING]]
    return table(["operation", "µs", "% of copy bandwidth", "TFLOP/s"], rows)


def render(results, images):
    about = "Nothing has been measured on a GPU yet."
    if results.rows:
        versions = results.last("peers")
        about = (f"{', '.join(sorted(results.dates))}: {results.about.get('gpu')}, driver {results.about.get('driver')}, "
                 f"nvcc {results.about.get('nvcc')}, commit {results.about.get('commit', '')[:12]}")
        if versions:
            about += ", " + ", ".join(f"{key} {versions[key]}" for key in ("torch", "transformers", "peft"))
        about += "."
    parts = [about, checks(results),
             "**Decode, 32 requests with contexts of 512 tokens, LLaMA-2-7B's shapes, bf16**", decode(results),
             "**Prefill, 4 prompts of 1,024 tokens, the same model**", prefill(results),
             "**Beside transformers + peft (`adapter_names`), the same shapes and GPU**", peers(results),
             "**A training step, SmolLM2's shapes, bf16, all linear layers**", training(results)]
    for part, key, label, axis in (("requests", "batch", "tokens/s by number of requests, each with its own module", "requests"),
                                   ("lengths", "length", "tokens/s of 8 requests by generated tokens", "generated tokens")):
        text, series = curve(results, part, key, label)
        parts.append(text)
        if any(series.values()):
            image = images / f"device_{part}.svg"
            image.write_text(lines(series, axis, "tokens/s"))
            parts.append(f"![{label}](images/{image.name})")
    parts += ["**Operations**", operations(results)]
    return "\n\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*")
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    results = Results(arguments.files)
    if arguments.into is None:
        print(render(results, Path(".")))
    else:
        replace(arguments.into, "device", [render(results, arguments.into.parent / "images")])


if __name__ == "__main__":
    main()
