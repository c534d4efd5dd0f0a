#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/performance-peers.md from what run.py has measured:

    bench/peers/table.py bench/results/peers.json docs/performance-peers.md
"""
import json
import statistics
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from page import replace  # noqa: E402


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def line(row):
    """One row of a table, in Markdown."""
    median, low, high = row["ratio"]
    values = [number(statistics.median(row[side])) for side in ("graft", "theirs")]
    more = ""
    if "alike" in row:
        more = "{} of {} tokens".format(*row["alike"])
    if "peak_mb" in row:
        more = "peak {} of {} MB: {:.0f} %".format(*row["peak_mb"], 100 * row["peak_mb"][0] / row["peak_mb"][1])
    if "resident_mb" in row:
        more = "resident {} and {} MB, of these mapped files {} and {} MB".format(*row["resident_mb"], *row["of_files_mb"])
    aim = row["aim"] or ""
    if isinstance(aim, (int, float)):
        aim = f"{aim:g}x"
    return (f"| {row['what']} | {row['peer']} | {values[0]} | {values[1]} {row['unit']} | {median:.2f}x ({low:.2f} to {high:.2f}) "
            f"| {aim} | {more} |")


def render(result):
    sections = []
    for row in result["rows"]:
        if row["section"] not in sections:
            sections.append(row["section"])
    text = []
    for section in sections:
        text += [f"**{section}**", "", "| what | peer | graft | peer | ratio | aim | alike, memory |",
                 "| --- | --- | ---: | ---: | ---: | ---: | --- |"]
        text += [line(row) for row in result["rows"] if row["section"] == section] + [""]
    about = result["about"]
    names = ("isa", "llama-cpp-python", "ctranslate2", "onnxruntime-genai", "onnxruntime", "torch", "transformers", "peft")
    versions = {key: value for side in about.values() for key, value in side.items() if key in names}
    text.append(f"{result['threads']} threads; " + ", ".join(f"{key} {value}" for key, value in versions.items()) + ".")
    return "\n".join(text)


def write(result, path):
    replace(path, "peers", [render(result)])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    write(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
