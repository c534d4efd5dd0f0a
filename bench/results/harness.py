# SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates a grid of methods with `graft train` and `graft eval`, one row per run; can be stopped and
started again at any time.

    python3 harness.py run GRID.json --graft build/bin/graft --data DATA_DIR [--cells 3]
    python3 harness.py draw GRID.json --into docs/results.md       # and the plot beside it: images/GRID.svg

Every cell of the grid has a hash of its whole configuration; cells that rows.jsonl holds are not run again. For each
method the learning rate is the one with the best score on validation data, and only that one is evaluated on the test
data, once for each seed. `draw` replaces the table between the grid's two markers in a page; cells that were not run
say "not measured".
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tasks import write_split

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from page import replace  # noqa: E402

ROWS = HERE / "rows.jsonl"

# -------------------------------------------------------------------------------------------------------------- rows


def rows(path=ROWS):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def cell_hash(cell):
    return hashlib.sha256(json.dumps(cell, sort_keys=True).encode()).hexdigest()[:16]


def append(cell, result, path=ROWS):
    commit = subprocess.run(["git", "-C", HERE, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout
    with open(path, "a") as out:
        out.write(json.dumps({"hash": cell_hash(cell), **cell, "commit": commit.strip(), **result}) + "\n")


def call(command):
    """(last JSON object on stdout, seconds, peak MiB of the process)"""
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        out = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            errors.seek(0)
            sys.exit(f"{' '.join(map(str, command))}\nfailed: {errors.read().strip()}")
    return json.loads(out.strip().splitlines()[-1]), time.monotonic() - start, usage.ru_maxrss / 1024


def common_flags(arguments, model):
    """Of `graft train` and `graft eval`; `model` is the experiment's."""
    return ["--model", arguments.model or HERE.parent.parent / model, "--threads", str(arguments.threads), "--json"]


class Grid:
    def __init__(self, path):
        self.__dict__.update(json.loads(Path(path).read_text()))
        self.name = Path(path).stem

    def cell(self, method, lr, seed, split):
        return {
            "grid": self.name, "model": self.model, "task": self.task, "method": method, "lr": lr, "seed": seed,
            "split": split, "train": self.train, "dev": self.dev, "test": self.test, "options": self.options,
            "arguments": self.methods[method],
        }

    def cells(self, have):
        """What to run next, in order: validation runs of one seed, then the test runs of the best learning rate."""
        for method, arguments in self.methods.items():
            if arguments is None:  # the bare model
                yield self.cell(method, None, None, "test")
                continue
            for lr in self.lrs[method]:
                yield self.cell(method, lr, self.seeds[0], "dev")
            if best := self.best(method, have):
                for seed in self.seeds:
                    yield self.cell(method, best["lr"], seed, "test")

    def validation(self, method, have):
        """The validation rows there are, by learning rate."""
        cells = [self.cell(method, lr, self.seeds[0], "dev") for lr in self.lrs[method]]
        return [have[cell_hash(cell)] for cell in cells if cell_hash(cell) in have]

    def best(self, method, have):
        """The best of them; None before all learning rates were tried."""
        found = self.validation(method, have)
        return max(found, key=lambda row: row["score"]) if len(found) == len(self.lrs[method]) else None


def run_cell(grid, cell, graft, data, common, work):
    if cell["split"] == "test":
        write_split(grid.task, data, "test", grid.test, work / "eval.jsonl")
    else:
        write_split(grid.task, data, "dev", grid.dev, work / "eval.jsonl")
    folder = work / f"{cell['method']}-{cell['lr']}-{cell['seed']}"
    result = {}
    evaluate = [graft, "eval", *common, "--data", work / "eval.jsonl"]
    if cell["lr"] is not None:
        if not folder.exists():
            write_split(grid.task, data, "train", grid.train, work / "train.jsonl")
            command = [graft, "train", *common, "--data", work / "train.jsonl", "--out", folder]
            command += ["--lr", str(cell["lr"]), "--seed", str(cell["seed"]), *grid.options, *cell["arguments"]]
            summary, seconds, peak = call(command)
            (folder / "harness.json").write_text(json.dumps({"summary": summary, "seconds": seconds, "peak": peak}))
        trained = json.loads((folder / "harness.json").read_text())
        result = {"seconds": round(trained["seconds"], 1), "peak_mib": round(trained["peak"], 1),
                  "parameters": trained["summary"].get("parameters")}
        evaluate += ["--adapter", f"a={folder}", "--use", "a"]
    scores, _, _ = call(evaluate)
    return {**result, "score": scores["accuracy"], "examples": scores["lines"]}


def run(arguments):
    grid = Grid(arguments.grid)
    data, done = Path(arguments.data), 0
    work = Path(arguments.work or HERE / "work" / grid.name)
    work.mkdir(parents=True, exist_ok=True)
    common = common_flags(arguments, grid.model)
    while done < arguments.cells:
        have = {row["hash"]: row for row in rows()}
        todo = next((cell for cell in grid.cells(have) if cell_hash(cell) not in have), None)
        if todo is None:
            print("nothing left to run")
            return
        print(f"{todo['method']} lr {todo['lr']} seed {todo['seed']} {todo['split']}", flush=True)
        append(todo, run_cell(grid, todo, arguments.graft, data, common, work))
        done += 1


# -------------------------------------------------------------------------------------------------------------- draw


def results(grid):
    """(method, the best validation row or None, some row of its training or None, its test rows)"""
    have = {row["hash"]: row for row in rows()}
    for method, arguments in grid.methods.items():
        if arguments is None:
            row = have.get(cell_hash(grid.cell(method, None, None, "test")))
            yield method, None, None, [row] if row else []
            continue
        known, best = grid.validation(method, have), grid.best(method, have)
        tests = [have.get(cell_hash(grid.cell(method, best["lr"], seed, "test"))) for seed in grid.seeds] if best else []
        yield method, best, best or (known[0] if known else None), [row for row in tests if row]


def table(grid):
    lines = ["| method | parameters | learning rate | validation | test | peak memory | training |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for method, best, some, tests in results(grid):
        if grid.methods[method] is None:
            lines.append(f"| {method} | | | | {percent(tests, 1)} | | |")
            continue
        lines.append(
            f"| {method} | {some['parameters'] if some else ''} | {best['lr'] if best else ''} | "
            f"{percent([best] if best else [], 1)} | {percent(tests, len(grid.seeds))} | "
            f"{str(round(some['peak_mib'])) + ' MiB' if some else ''} | {str(round(some['seconds'])) + ' s' if some else ''} |"
        )
    return lines


def plot(grid):
    """Test score over trained parameters as SVG: a dot per method, a bar over its seeds or its standard error, a dashed
    line where the bare model is."""
    width, height, left, right, bottom = 720, 340, 60, 570, 290
    points, bare = [], None
    for method, _, some, tests in results(grid):
        scores = [100 * row["score"] for row in tests]
        if scores and some:
            mean = sum(scores) / len(scores)
            error = 100 * math.sqrt(mean / 100 * (1 - mean / 100) / tests[0]["examples"])
            low, high = (min(scores), max(scores)) if len(scores) > 1 else (mean - error, mean + error)
            points.append((method, some["parameters"], mean, low, high))
        elif scores:
            bare = (method, scores[0])
    marks = [v for point in points for v in point[3:]] + ([bare[1]] if bare else [])
    if not marks:
        return ""
    low, high = math.floor(min(marks)) - 1, math.ceil(max(marks)) + 1

    def x(parameters):  # 10^4 to 10^7
        return left + (math.log10(parameters) - 4) / 3 * (right - left)

    def y(score):
        return bottom - (score - low) / (high - low) * (bottom - 20)

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
           f'<rect width="{width}" height="{height}" fill="white"/>']
    for power in range(4, 8):
        out.append(f'<text x="{x(10**power):.0f}" y="{bottom + 18}" text-anchor="middle">10<tspan dy="-5">{power}</tspan></text>')
    for score in range(low, high + 1, 2):
        out.append(f'<path d="M{left} {y(score):.1f}H{right}" stroke="#ddd"/>'
                   f'<text x="{left - 8}" y="{y(score) + 4:.1f}" text-anchor="end">{score}</text>')
    if bare:
        out.append(f'<path d="M{left} {y(bare[1]):.1f}H{right}" stroke="#555" stroke-dasharray="5 4"/>'
                   f'<text x="{left + 4}" y="{y(bare[1]) - 5:.1f}">{bare[0]}</text>')
    colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"]  # Okabe and Ito's
    for k, (method, parameters, mean, least, most) in enumerate(points):
        at, colour = x(parameters) + 4 * (k % 3 - 1), colours[k % len(colours)]  # bars side by side, not on each other
        out.append(f'<path d="M{at:.1f} {y(least):.1f}V{y(most):.1f}" stroke="{colour}" stroke-width="2"/>'
                   f'<circle cx="{at:.1f}" cy="{y(mean):.1f}" r="4" fill="{colour}"/>'
                   f'<circle cx="{right + 16}" cy="{30 + 18 * k}" r="4" fill="{colour}"/>'
                   f'<text x="{right + 26}" y="{34 + 18 * k}">{method}</text>')
    out.append(f'<text x="{(left + right) / 2:.0f}" y="{height - 8}" text-anchor="middle">trained parameters</text>'
               f'<text transform="translate(16 {bottom / 2:.0f}) rotate(-90)" text-anchor="middle">accuracy on the test split, %</text></svg>')
    return "\n".join(out) + "\n"


def percent(found, wanted):
    """Mean and, of several seeds, the spread (highest - lowest); of one, the binomial standard error."""
    if not found:
        return "not measured"
    scores = [100 * row["score"] for row in found]
    mean = sum(scores) / len(scores)
    if len(scores) > 1:
        text = f"{mean:.1f} (spread {max(scores) - min(scores):.1f})"
    else:
        p = mean / 100
        text = f"{mean:.1f} ± {100 * (p * (1 - p) / found[0]['examples']) ** 0.5:.1f}"
    return text if len(scores) >= wanted else f"{text}, {len(scores)} of {wanted} seeds"


def draw(arguments):
    grid, page = Grid(arguments.grid), Path(arguments.into)
    replace(page, grid.name, table(grid))
    image = page.parent / "images" / f"{grid.name}.svg"
    image.parent.mkdir(exist_ok=True)
    image.write_text(plot(grid))


def commands(description):
    """A parser and its commands run and draw, with the arguments of every experiment."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_subparsers(required=True)
    one, two = choice.add_parser("run"), choice.add_parser("draw")
    one.add_argument("--graft", required=True)
    one.add_argument("--data", required=True)
    one.add_argument("--model", help="instead of the experiment's")
    one.add_argument("--threads", type=int, default=0, help="0: one per core")
    one.add_argument("--cells", type=int, default=10**9, help="stop after this many")
    two.add_argument("--into", required=True)
    return parser, one, two


def main():
    parser, one, two = commands(__doc__)
    for command in (one, two):
        command.add_argument("grid")
    one.add_argument("--work", help="where training folders go")
    one.set_defaults(call=run)
    two.set_defaults(call=draw)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
