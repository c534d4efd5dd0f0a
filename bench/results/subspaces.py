# SPDX-License-Identifier: Apache-2.0
"""Two tasks in one rotation, as in section 4.3 of Liao and Monz 2024 (arXiv:2409.00119): RoAd on the output of a layer,
half of its blocks for each task, trained together in one pass and used apart or together. One command that can be
stopped and started again.

    python3 subspaces.py run --graft build/bin/graft --data DATA_DIR
    python3 subspaces.py draw --into docs/results.md

For the halves and for the joint module that they are compared with, the learning rate is the one with the best mean
score of both tasks on validation data; only that one is evaluated on the test data, for each seed. `draw` replaces the
tables between the page's markers; what was not run says "not measured".
"""

import json
from pathlib import Path

from harness import HERE, append, call, cell_hash, commands, common_flags, percent, replace, rows
from tasks import subset, write_lines

ROWS = HERE / "subspaces.jsonl"
MODEL = ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
TASKS = {"SST-2": "sst2", "BoolQ": "boolq"}
LAYER = 15  # of 30, the middle; the paper's is 16 of 32
METHOD = ["--method", "road", "--variant", "road_1", "--targets", f"layers.{LAYER}"]
OPTIONS = ["--epochs", "3", "--batch", "8", "--schedule", "linear", "--warmup", "10"]
POSITIONS = "last_prompt"
LRS, SEEDS = [5e-3, 2e-2], [0]
TRAIN, DEV, TEST = 300, 100, 300  # lines of each task

# What is trained, and what of it a request lists: parts of two, or the whole.
USES = {"halves": {"half A": [0], "half B": [1], "both halves": [0, 1]}, "joint": {"joint": [None]}}


def cell(kind, use, lr, seed, split):
    return {
        "positions": POSITIONS if kind else None, "kind": kind, "use": use, "lr": lr, "seed": seed, "split": split, "model": MODEL,
        "tasks": TASKS, "train": TRAIN, "lines": DEV if split == "dev" else TEST, "method": METHOD, "options": OPTIONS,
    }  # fmt: skip


def bare():
    return cell(None, None, None, None, "test")


def validation(kind):
    """One cell for each learning rate: all that was trained, together."""
    return [cell(kind, list(USES[kind])[-1], lr, SEEDS[0], "dev") for lr in LRS]


def best(kind, have):
    """The learning rate with the best validation row; None before all were tried."""
    found = [have[cell_hash(one)] for one in validation(kind) if cell_hash(one) in have]
    return max(found, key=lambda row: sum(row["scores"].values()))["lr"] if len(found) == len(LRS) else None


def tests(kind, use, have):
    lr = best(kind, have)
    return [cell(kind, use, lr, seed, "test") for seed in SEEDS] if lr else []


def cells(have):
    """What to run next, in order."""
    yield bare()
    for kind in USES:
        yield from validation(kind)
        for use in USES[kind]:
            yield from tests(kind, use, have)


# --------------------------------------------------------------------------------------------------------------- run


class Runner:
    def __init__(self, arguments):
        self.graft, self.data, self.common = arguments.graft, Path(arguments.data), common_flags(arguments, MODEL)
        self.work = HERE / "work" / "subspaces"
        self.work.mkdir(parents=True, exist_ok=True)

    def train(self, one):
        """The folder of what is trained; trained if it is not there."""
        what = {key: one[key] for key in ("positions", "kind", "lr", "seed", "model", "tasks", "train", "method", "options")}
        folder, lines = self.work / cell_hash(what), self.work / "train.jsonl"
        if not (folder / "training.json").exists():
            with open(lines, "w") as out:
                for part, task in enumerate(TASKS.values()):
                    own = {"part": part} if one["kind"] == "halves" else {}
                    for prompt, completion, _ in subset(task, self.data, "train", TRAIN):
                        out.write(json.dumps({"prompt": prompt, "completion": completion, **own}) + "\n")
            flags = ["--set", f"positions={one['positions']}", "--lr", str(one["lr"]), "--seed", str(one["seed"])]
            parts = ["--parts", "2"] if one["kind"] == "halves" else []
            call([self.graft, "train", *self.common, "--data", lines, "--out", folder, "--resume",
                  *METHOD, *OPTIONS, *flags, *parts])  # fmt: skip
        return folder

    def adapters(self, one):
        """What a request of the cell lists."""
        if one["kind"] is None:
            return []
        whole = self.train(one)
        folders = []
        for part in USES[one["kind"]][one["use"]]:
            folders.append(whole if part is None else whole / f"part-{part}")
            if part is not None:
                call([self.graft, "combine", "--op", "subspace", "--part", str(part), "--parts", "2",
                      "--out", folders[-1], whole, "--json"])  # fmt: skip
        return folders

    def run(self, one):
        flags, scores = [], {}
        for k, folder in enumerate(self.adapters(one)):
            flags += ["--adapter", f"a{k}={folder}", "--use", f"a{k}"]
        for name, task in TASKS.items():
            lines = self.work / f"eval-{cell_hash(one)}.jsonl"
            write_lines(subset(task, self.data, one["split"], one["lines"]), lines, True)
            scores[name] = call([self.graft, "eval", *self.common, "--data", lines, *flags])[0]["accuracy"]
        return {"scores": scores, "examples": one["lines"]}


def run(arguments):
    runner = Runner(arguments)
    for _ in range(arguments.cells):
        have = {row["hash"]: row for row in rows(ROWS)}
        todo = next((one for one in cells(have) if cell_hash(one) not in have), None)
        if todo is None:
            print("nothing left to run")
            return
        print(todo["use"], "lr", todo["lr"], "seed", todo["seed"], todo["split"], flush=True)
        append(todo, runner.run(todo), ROWS)


# -------------------------------------------------------------------------------------------------------------- draw


def line(name, lr, found, wanted):
    scores = [percent([{"score": r["scores"][t], "examples": r["examples"]} for r in found], wanted) for t in TASKS]
    return f"| {name} | {lr or ''} | {' | '.join(scores)} |"


def table(have):
    yield from ["", f"| what | learning rate | {' | '.join(TASKS)} |"]
    yield "| --- | ---: |" + " ---: |" * len(TASKS)
    yield line("no module", None, [have[cell_hash(bare())]] if cell_hash(bare()) in have else [], 1)
    names = {f"half {letter}": f"half {letter}, for {task}" for letter, task in zip("AB", TASKS)}
    names["joint"] = "RoAd 1 trained jointly"
    for kind in USES:
        for use in USES[kind]:
            found = [have[cell_hash(one)] for one in tests(kind, use, have) if cell_hash(one) in have]
            yield line(names.get(use, use), best(kind, have), found, len(SEEDS))


def draw(arguments):
    have = {row["hash"]: row for row in rows(ROWS)}
    replace(arguments.into, "subspaces", [*table(have), ""])


def main():
    parser, one, two = commands(__doc__)
    one.set_defaults(call=run)
    two.set_defaults(call=draw)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
