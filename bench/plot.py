#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tables of docs/performance.md from the JSON files of the programs here:

    bench/product --benchmark_out=product.json --benchmark_out_format=json
    bench/plot.py product.json model.json          # Markdown on stdout
"""
import json
import sys


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    return "\n".join(lines + ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows])


def products(cases):
    rows = []
    for case in cases:
        _, shape, weights, count, level, precision = case["name"].split("/")[:6]
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
    rows = []
    for case in cases:
        _, model, weights, count, adapters, precision = case["name"].split("/")[:6]
        rows.append([f"{model}, {weights}, {count} rows, {adapters}, {precision}", f"{case['us']:.0f}",
                     f"{case['plain_read_limit_%']:.0f}", f"{case['overhead_%']:+.1f}", f"{case['floor_%']:.1f}"])
    return table(["all seven layers of a block", "µs", "% of read limit without adapters",
                  "overhead over no adapter, %", "floor, %"], rows)


def models(cases):
    rows = []
    for case in cases:
        kind, count, adapters, precision = case["name"].split("/")[:4]
        requests = "requests" if kind == "decode" else "tokens"
        rows.append([f"{kind}, {count} {requests}, adapters: {adapters}, {precision}", f"{case['ms']:.1f}",
                     f"{case['tokens/s']:.0f}", f"{case['read_limit_%']:.0f}", f"{case['overhead_%']:+.1f}"])
    return table(["step", "ms", "tokens/s", "% of read limit", "overhead over the same without adapters, %"], rows)


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            cases = [case for case in json.load(file)["benchmarks"] if case.get("run_type") == "iteration"]
        product = [case for case in cases if case["name"].startswith("product/")]
        model = [case for case in cases if case["name"].split("/")[0] in ("decode", "prefill")]
        layer = [case for case in cases if case["name"].startswith("layer/")]
        site = [case for case in cases if case["name"].startswith("sites/")]
        for some, render in ((product, products), (layer, layers), (site, sites), (model, models)):
            if some:
                print(render(some), end="\n\n")


if __name__ == "__main__":
    main()
