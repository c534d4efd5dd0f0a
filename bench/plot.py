#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tables and plots of docs/performance-kernels.md and docs/performance-models.md from the JSON files of the programs here:

    bench/product --benchmark_out=product.json --benchmark_out_format=json
    bench/plot.py product.json model.json                                 # Markdown on stdout
    bench/plot.py product.json --into docs/performance-kernels.md         # between the page's markers; plots beside it

Of a case that several files have, run at several times, the medians count.
"""
import argparse
import json
import math
import statistics
from pathlib import Path

from page import replace


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def lines(series, x_label, y_label):
    """{name: [(x, y)]} as SVG: a line each, both axes logarithmic."""
    width, height, left, right, bottom = 720, 340, 60, 500, 290
    points = [point for line in series.values() for point in line]
    places = sorted({x for x, _ in points})
    low, high = math.floor(math.log10(min(y for _, y in points))), math.ceil(math.log10(max(y for _, y in points)))
    first, last = math.log(places[0]), math.log(places[-1])

    def x(value):
        return left + 10 + (math.log(value) - first) / ((last - first) or 1) * (right - left - 20)

    def y(value):
        return bottom - (math.log10(value) - low) / ((high - low) or 1) * (bottom - 20)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    out += [f'<text x="{x(value):.0f}" y="{bottom + 18}" text-anchor="middle">{value}</text>' for value in places]
    for power in range(low, high + 1):
        for step in (1, 2, 5):
            if power < high or step == 1:
                at, value = y(step * 10**power), step * 10**power
                out.append(f'<path d="M{left} {at:.1f}H{right}" stroke="#ddd"/>'
                           f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]  # Okabe and Ito's
    for k, (name, line) in enumerate(series.items()):
        colour = colours[k % len(colours)]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"/>' for a, b in line]
        out.append(f'<circle cx="{right + 16}" cy="{30 + 18 * k}" r="4" fill="{colour}"/>'
                   f'<text x="{right + 26}" y="{34 + 18 * k}">{name}</text>')
    out.append(f'<text x="{(left + right) / 2:.0f}" y="{height - 8}" text-anchor="middle">{x_label}</text>'
               f'<text transform="translate(16 {bottom / 2:.0f}) rotate(-90)" text-anchor="middle">{y_label}</text></svg>')
    return "\n".join(out) + "\n"


def products(cases):
    rows = []
    for case in cases:
        _, shape, weights, count, level, precision = case["name"].split("/")[:6]
        if int(count) not in (1, 4, 16, 512):  # the plot has all
            continue
        limit = case["instruction_limit_%"]
        rows.append([f"{shape}, {weights}, {count} rows, {level}, {precision}", f"{case['us']:.0f}",
                     f"{case['GB/s']:.1f}", f"{case['read_limit_%']:.0f}", f"{case['GFLOP/s']:.0f}",
                     f"{limit:.0f}" if limit else "-"])
    return table(["product", "µs", "GB/s", "% of read limit", "GFLOP/s", "% of instruction's limit"], rows)


def layers(cases):
    rows = []
    for case in cases:
        _, shape, weights, count, adapters, precision = case["name"].split("/")[:6]
        rows.append([f"{shape}, {weights}, {count} rows, {adapters}, {precision}", f"{case['us']:.0f}",
                     f"{case['overhead_%']:+.1f}", f"{case['floor_%']:.1f}"])
    return table(["one layer, every row its own module", "µs", "overhead over no adapter, %", "floor, %"], rows)


def sites(cases):
    """Cells: overhead over no adapter and, in brackets, the byte model's floor."""
    cells = {}
    for case in cases:
        _, model, weights, count, adapters, precision = case["name"].split("/")[:6]
        cells.setdefault((model, weights, precision, adapters), {})[int(count)] = case
    counts = sorted({count for row in cells.values() for count in row})
    rows = []
    for (model, weights, precision, adapters), row in cells.items():
        rows.append([f"{model}, {weights}, {precision}: {adapters}"]
                    + [f"{row[n]['overhead_%']:+.1f} ({row[n]['floor_%']:.1f})" if n in row else "" for n in counts])
    return table(["all seven layers of a block: overhead (floor), %"]
                 + [f"{n} row{'s' * (n != 1)}" for n in counts], rows)


def attentions(cases):
    rows = []
    for case in cases:
        _, model, requests, tokens, count, storage = case["name"].split("/")[:6]
        rows.append([f"{model}, {requests} x {count} rows after {tokens} tokens, {storage}", f"{case['us']:.0f}",
                     f"{case['GB/s']:.1f}", f"{case['read_limit_%']:.0f}", f"{case['GFLOP/s']:.0f}",
                     f"{case['instruction_limit_%']:.0f}"])
    return table(["attention of one layer", "µs", "GB/s", "% of read limit", "GFLOP/s",
                  "% of limit of multiply-adds"], rows)


def models(cases):
    rows = []
    for case in cases:
        kind, weights, count, adapters, precision = case["name"].split("/")[:5]
        what = f"{count} request{'s' * (count != '1')}" if kind == "decode" else f"prefill of {count} tokens"
        rows.append([f"{weights}, {precision}: {what}, {adapters}", f"{case['ms']:.1f}", f"{case['tokens/s']:.0f}",
                     f"{case['read_limit_%']:.0f}", f"{case['instruction_limit_%']:.0f}", f"{case['overhead_%']:+.1f}"])
    return table(["step", "ms", "tokens/s", "% of read limit", "% of instruction's limit",
                  "overhead over the same without adapters, %"], rows)


def trainings(cases):
    rows = []
    for case in cases:
        _, weights, method, layers, precision = case["name"].split("/")[:5]
        rows.append([f"{weights}, {precision}: {method}, {layers}", f"{case['ms']:.0f}", f"{case['tokens/s']:.0f}",
                     f"{case['instruction_limit_%']:.0f}", f"{case['peak_MB']:.0f}", f"{case['memory_floor_%']:.0f}"])
    return table(["step of 8 x 64 tokens", "ms", "tokens/s", "% of instruction's limit", "peak, MB",
                  "of these the floor, %"], rows)


def loads(cases):
    rows = []
    for case in cases:
        _, what, how = case["name"].split("/")[:3]
        rows.append([f"{what}, {how}", f"{case['ms']:.1f}", f"{case['MB']:.1f}", f"{case['MB/s']:.0f}",
                     f"{case['read_limit_%']:.0f}", f"{case['resident_MB']:.1f}", f"{case['of_files_MB']:.1f}"])
    return table(["loading", "ms", "MB read", "MB/s", "% of read limit", "resident, MB", "of these mapped, MB"], rows)


def by_count(cases, label, y):
    """{label(parts of the name): [(count, y(case))]}, counts rising."""
    series = {}
    for case in cases:
        parts = case["name"].split("/")
        name = label(parts)
        if name:
            series.setdefault(name, []).append((int(parts[3] if parts[0] != "decode" else parts[2]), y(case)))
    return {name: sorted(line) for name, line in series.items()}


def product_plot(cases):
    def label(parts):
        fastest = "exact" if parts[2] == "F32" else "native"
        return parts[2] if parts[1] == "LLaMA-2-7B q_proj" and parts[5] == fastest else None

    return lines(by_count(cases, label, lambda case: case["GFLOP/s"]), "rows of x", "GFLOP/s, weights 4096 x 4096")


def sites_plot(cases):
    def label(parts):
        chosen = parts[1:3] == ["LLaMA-2-7B", "BF16"] and parts[5] == "native" and not parts[4].startswith("one ")
        return parts[4] if chosen else None

    def rows_per_second(case):
        return 1e6 * int(case["name"].split("/")[3]) / case["us"]

    return lines(by_count(cases, label, rows_per_second), "rows, each its own module", "rows/s through a 7B block")


def model_plot(cases):
    modes = [case["name"].split("/") for case in cases]
    fastest = {name: "native, packed" if any(parts[1] == name and parts[4] == "native, packed" for parts in modes)
               else "native" for name in {parts[1] for parts in modes}}

    def label(parts):
        chosen = parts[0] == "decode" and parts[4] == fastest[parts[1]] and parts[3] != "mixed"
        return f"{parts[1]}: {parts[3]}" if chosen else None

    return lines(by_count(cases, label, lambda case: case["tokens/s"]), "requests, each its own module", "tokens/s")


def median_of(runs):
    """One case of several runs of it: the median of each number."""
    return {key: statistics.median(run[key] for run in runs) if isinstance(value, float) else value
            for key, value in runs[0].items()}


def is_made_up(case):
    return "layer" in case["name"].split("/")[1]


def all_share_one(case):
    return case["name"].split("/")[3] in ("one lora", "merged lora")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    runs = {}
    for path in arguments.files:
        for case in json.loads(path.read_text())["benchmarks"]:
            if case.get("run_type") == "iteration":
                runs.setdefault(case["name"], []).append(case)
    cases = {name: median_of(same) for name, same in runs.items()}
    # marker, first parts of the names, which of these cases, table, plot
    for marker, kinds, chosen, render, plot in (
            ("product", ["product"], lambda case: True, products, product_plot),
            ("attention", ["attention"], lambda case: True, attentions, None),
            ("linear", ["layer"], lambda case: True, layers, None),
            ("sites", ["sites"], lambda case: True, sites, sites_plot),
            ("merged", ["decode", "prefill"], all_share_one, models, None),
            ("made-up model", ["decode", "prefill"], lambda case: is_made_up(case) and not all_share_one(case), models,
             None),
            ("model", ["decode", "prefill"], lambda case: not is_made_up(case) and not all_share_one(case), models,
             model_plot),
            ("train", ["train"], lambda case: True, trainings, None),
            ("load", ["load"], lambda case: True, loads, None)):
        some = [case for name, case in cases.items() if name.split("/")[0] in kinds and chosen(case)]
        if not some:
            continue
        parts = [render(some)]
        if arguments.into is None:
            print(parts[0], end="\n\n")
            continue
        if plot:
            image = arguments.into.parent / "images" / f"{marker}.svg"
            image.write_text(plot(some))
            parts.append(f"![{marker}](images/{image.name})")
        replace(arguments.into, marker, ["\n\n".join(parts)])


if __name__ == "__main__":
    main()
