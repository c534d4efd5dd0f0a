# SPDX-License-Identifier: Apache-2.0
"""The four settings of Zhang et al. 2023 (arXiv:2306.14870), each one command that can be stopped and started again.

    python3 settings.py run generalise|multitask|unlearn|transfer --graft build/bin/graft --data DATA_DIR [--seed 1]
    python3 settings.py draw --into docs/results.md

Modules are trained once and kept in work/; every evaluation of a module or a sum is a row of settings.jsonl. Where a
sum has a weight, every weight is evaluated on validation data and only the best one on the test data, for each seed on
its own. `draw` replaces the tables between the page's markers; what was not run says "not measured".
"""

import itertools
import json
import math
import statistics
from pathlib import Path

from harness import HERE, append, call, cell_hash, commands, common_flags, replace, rows
from tasks import PART, subset, write_lines

ROWS = HERE / "settings.jsonl"
MODEL = ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"
OPTIONS = ["--epochs", "1", "--batch", "8", "--schedule", "linear", "--warmup", "10"]
METHODS = {
    "LoRA": ["--method", "lora", "--rank", "8", "--alpha", "16", "--lr", "1e-3"],
    "(IA)3": ["--method", "ia3", "--lr", "1e-2"],
    "RoAd 1": ["--method", "road", "--variant", "road_1", "--lr", "3e-3"],
    "PEDRO": ["--method", "pedro", "--rank", "12", "--lr", "2e-3"],
}
SEEDS = (0, 1, 2)  # each of all modules: LoRA's start with the same A
DEV, TEST = 100, 300  # lines to validate and to test on; modules learn from PART lines of a task

# ---------------------------------------------------------------------------------------------------------- settings


def use(*modules):
    """Function space: what modules do, weighted and added; weights of a request's list."""
    return {"op": "use", "uses": dict(modules)}


class Block:
    """A table: modules as {name: {task: lines}}, what is evaluated on, and rows as {name: {weight: what is summed}}.
    Helpers are modules without a row of their own."""

    def __init__(self, setting, title, modules, sets, sums, measure="accuracy", helpers=None):
        self.setting, self.title, self.sets, self.measure = setting, title, sets, measure
        self.modules = modules | (helpers or {})
        self.rows = {f"module: {name}": {1: use((name, 1))} for name in modules} | sums

    def cell(self, method, name, weight, split, seed=SEEDS[0]):
        what = self.rows[name][weight] if method else use()
        return {
            "setting": self.setting, "block": self.title, "model": MODEL, "method": method, "cell": name,
            "weight": weight, "split": split, "seed": seed, "options": OPTIONS, "arguments": METHODS.get(method),
            "sets": self.sets, "lines": DEV if split == "dev" else TEST, **what,
            "modules": {name: self.modules[name] for name in what["uses"]},
        }  # fmt: skip

    def bare(self, split):
        return self.cell(None, "no module", None, split)

    def validation(self, method, name, seed):
        return {weight: self.cell(method, name, weight, "dev", seed) for weight in self.rows[name]}

    def best(self, method, name, have, seed):
        """The weight with the best score on validation data; None if not all are there."""
        if len(self.rows[name]) == 1:
            return next(iter(self.rows[name]))
        found = {weight: have.get(cell_hash(cell)) for weight, cell in self.validation(method, name, seed).items()}
        if None in found.values():
            return None
        if self.measure == "accuracy":
            return max(found, key=lambda w: sum(score["score"] for score in found[w]["scores"].values()))
        # to unlearn: the most for the first text, where the others' perplexity rises by no more than 5 %
        domain, *others = self.sets
        base, loss = have[cell_hash(self.bare("dev"))]["scores"], lambda w, text: found[w]["scores"][text]["score"]
        mild = [w for w in found if all(loss(w, text) <= base[text]["score"] + math.log(1.05) for text in others)]
        return max(mild, key=lambda w: loss(w, domain)) if mild else min(found)

    def cells(self, method, have, seed):
        """What to run next, in order."""
        if self.measure == "loss":
            yield self.bare("dev")
        yield self.bare("test")
        for name in self.rows:
            if len(self.rows[name]) > 1:
                yield from self.validation(method, name, seed).values()
            best = self.best(method, name, have, seed)
            if best is not None:
                yield self.cell(method, name, best, "test", seed)


def two(first, second):
    """Two modules added: the paper's mean of parameters, and what they do."""

    def mean(w):
        return {"op": "paper-add", "uses": {first: w, second: round(1 - w, 2)}}

    return {
        "paper's sum, w and 1 - w": {w: mean(w) for w in (0.3, 0.5, 0.7)},
        "sum, w and w": {w: use((first, w), (second, w)) for w in (0.5, 1)},
    }


def transfer(source, target):
    modules = {f"{source} classifier": {source: PART}, f"{target} classifier": {target: PART}}
    modules["joint"] = {source: PART, target: PART}
    helpers = {f"{domain} LM": {f"{domain} text": PART} for domain in (target, source)}
    classifier, of_target, of_source = f"{source} classifier", *helpers

    def analogy(w):
        uses = {classifier: None, of_target: None, of_source: None}
        return {"op": "analogy", "uses": uses, "flags": ["--lambda", str(w)]}

    sums = {
        "paper's analogy, w": {w: analogy(w) for w in (0.5, 0.7, 0.9)},
        "classifier + w (LM - LM)": {w: use((classifier, 1), (of_target, w), (of_source, -w)) for w in (0.3, 1)},
    }
    return Block("transfer", f"From {source} to {target}", modules, {target: target}, sums, helpers=helpers)


BLOCKS = [
    Block("generalise", "Distribution generalisation", {
        "mostly negative": {"sst2 part 0": PART}, "mostly positive": {"sst2 part 1": PART},
        "joint": {"sst2 part 0": PART, "sst2 part 1": PART},
    }, {"SST-2": "sst2"}, two("mostly negative", "mostly positive")),
    Block("multitask", "Multi-tasking", {
        "SST-2": {"sst2": PART}, "BoolQ": {"boolq": PART}, "joint": {"sst2": PART, "boolq": PART},
    }, {"SST-2": "sst2", "BoolQ": "boolq"}, two("SST-2", "BoolQ")),
    Block("unlearn", "Unlearning", {"scripture": {"scripture": PART}},
        {"scripture": "scripture", "reviews": "Amazon text", "questions": "questions"}, {
        "paper's negation, w": {w: {"op": "paper-negate", "uses": {"scripture": w}} for w in (0.1, 0.25, 0.5, 1, 2)},
    }, "loss"),
    transfer("Amazon", "Yelp"), transfer("Yelp", "Amazon"), transfer("IMDb", "Yelp"), transfer("Yelp", "IMDb"),
]  # fmt: skip

# --------------------------------------------------------------------------------------------------------------- run


class Runner:
    def __init__(self, arguments):
        self.graft, self.data = arguments.graft, Path(arguments.data)
        self.common = common_flags(arguments, MODEL)
        self.work = HERE / "work" / "settings"
        self.work.mkdir(parents=True, exist_ok=True)

    def train(self, method, tasks, seed):
        """The folder of a module; trained if it is not there."""
        what = {"method": METHODS[method], "options": OPTIONS, "seed": seed, "model": MODEL, "tasks": tasks}
        folder, lines = self.work / cell_hash(what), self.work / "train.jsonl"
        if not (folder / "summary.json").exists():
            examples = [e for task, count in tasks.items() for e in subset(task, self.data, "train", count)]
            write_lines(examples, lines, False)
            command = [self.graft, "train", *self.common, "--data", lines, "--out", folder, "--resume"]
            summary, _, _ = call([*command, "--seed", str(seed), *OPTIONS, *METHODS[method]])
            (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    def modules(self, cell):
        """(name, folder, weight) of what a request of the cell lists."""
        folders = {name: self.train(cell["method"], cell["modules"][name], cell["seed"]) for name in cell["uses"]}
        if cell["op"] == "use":
            return [(f"m{k}", folders[name], weight) for k, (name, weight) in enumerate(cell["uses"].items())]
        out = self.work / f"sum-{cell_hash(cell)}"
        operands = [f"{folders[name]}={w}" if w is not None else folders[name] for name, w in cell["uses"].items()]
        call([self.graft, "combine", "--op", cell["op"], "--out", out, *cell.get("flags", []), *operands, "--json"])
        return [("m", out, 1)]

    def score(self, examples, modules):
        lines = self.work / "eval.jsonl"
        write_lines(examples, lines, examples[0][2])
        command = [self.graft, "eval", *self.common, "--data", lines]
        for name, folder, weight in modules:
            command += ["--adapter", f"{name}={folder}", "--use", f"{name}={weight}"]
        return call(command)[0]

    def run(self, cell):
        modules, scores = self.modules(cell), {}
        for name, task in cell["sets"].items():
            examples = subset(task, self.data, cell["split"], cell["lines"])
            if examples[0][2]:
                scores[name] = {"score": self.score(examples, modules)["accuracy"], "examples": len(examples)}
            else:  # perplexity has no binomial error: four quarters of the lines give a spread
                losses = [self.score(examples[k::4], modules)["loss"] for k in range(4)]
                scores[name] = {"score": statistics.mean(losses), "quarters": losses, "examples": len(examples)}
        return {"scores": scores}


def run(arguments):
    runner, done = Runner(arguments), 0
    blocks = [block for block in BLOCKS if block.setting == arguments.setting]
    for seed, method, block in itertools.product(arguments.seed or SEEDS[:1], arguments.method or METHODS, blocks):
        while done < arguments.cells:
            have = {row["hash"]: row for row in rows(ROWS)}
            todo = next((cell for cell in block.cells(method, have, seed) if cell_hash(cell) not in have), None)
            if todo is None:
                break
            print(block.title, todo["method"], todo["cell"], todo["weight"], todo["split"], "seed", seed, flush=True)
            append(todo, runner.run(todo), ROWS)
            done += 1


# -------------------------------------------------------------------------------------------------------------- draw


def shown(found, bare, name):
    """Of the rows of all seeds: mean accuracy, its binomial error, lowest and highest seed; or mean perplexity and by
    what it is multiplied, lowest and highest over quarters and seeds."""
    scores = [row["scores"][name] for row in found]
    mean = statistics.mean(score["score"] for score in scores)
    if "quarters" not in scores[0]:
        each = [f"{100 * score['score']:.1f}" for score in sorted(scores, key=lambda score: score["score"])]
        text = f"{100 * mean:.1f} ± {100 * math.sqrt(mean * (1 - mean) / scores[0]['examples']):.1f}"
        return text if len(each) == 1 else f"{text} ({each[0]} to {each[-1]})"
    if found == [bare]:
        return f"{math.exp(mean):.1f}"
    before = bare["scores"][name]["quarters"]
    factors = [math.exp(loss - base) for score in scores for loss, base in zip(score["quarters"], before)]
    return f"{math.exp(mean):.1f} (× {min(factors):.2f} to {max(factors):.2f})"


def table(block, have):
    bare = have.get(cell_hash(block.bare("test")))
    if not bare:
        yield from ["", f"**{block.title}**: not measured"]
        return

    def tests(method, name):
        """{seed: the row of its best weight}, of the seeds that were run."""
        best = {seed: block.best(method, name, have, seed) for seed in SEEDS}
        cells = {seed: block.cell(method, name, w, "test", seed) for seed, w in best.items() if w is not None}
        return {seed: have[cell_hash(cell)] for seed, cell in cells.items() if cell_hash(cell) in have}

    def line(method, name, found):
        weights = [str(row["weight"]) for row in found] if method and len(block.rows[name]) > 1 else []
        weights = weights[:1] if len(set(weights)) == 1 else weights
        scores = [shown(found, bare, text) if found else "not measured" for text in block.sets]
        return f"| {method or ''} | {name} | {', '.join(weights)} | {' | '.join(scores)} |"

    yield from ["", f"**{block.title}**", "", f"| method | what | w | {' | '.join(block.sets)} |"]
    yield "| --- | --- | ---: |" + " ---: |" * len(block.sets)
    yield line(None, "no module", [bare])
    for method in METHODS:
        found = {name: list(tests(method, name).values()) for name in block.rows}
        if any(found.values()):
            yield from (line(method, name, rows_of_seeds) for name, rows_of_seeds in found.items())
        else:
            yield f"| {method} | all | |" + " not measured |" * len(block.sets)


def draw(arguments):
    have = {row["hash"]: row for row in rows(ROWS)}
    replace(arguments.into, "settings", [line for block in BLOCKS for line in table(block, have)] + [""])


def main():
    parser, one, two = commands(__doc__)
    one.add_argument("setting", choices=dict.fromkeys(block.setting for block in BLOCKS))
    one.add_argument("--method", action="append", choices=METHODS, help="only this one; repeatable")
    one.add_argument("--seed", action="append", type=int, choices=SEEDS, help="0 where none is given; repeatable")
    one.set_defaults(call=run)
    two.set_defaults(call=draw)
    arguments = parser.parse_args()
    arguments.call(arguments)


if __name__ == "__main__":
    main()
