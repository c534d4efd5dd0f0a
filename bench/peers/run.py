#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""graft beside its peers: the same weights, prompts and threads, in turn in one run.

    bench/peers/install.sh                        # once: .venv/peers with the peers, llama.cpp from its source
    cmake --build build --target graft_command bench_peers_graft
    bench/peers/run.py --into docs/performance-peers.md

Every side is a process that keeps its model and answers worker.py's calls; they take turns, so that a slow minute of the
machine hits all, and are stopped while they wait. A row is the median over the rounds; a ratio is the median of the
rounds' own ratios, with the lowest and the highest. --only PART... measures these and keeps the other rows of --json's
file.
"""
import argparse
import functools
import json
import os
import signal
import statistics
import subprocess
from pathlib import Path

import table

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
WORK = ROOT / "bench/results/work/peers"
PROMPT, NEW, LONG, REQUESTS = 64, 32, 512, 8
SENTENCE = "The three primary colours are"
# What graft reads, and how it computes, beside a peer's type. Q4_0 has a scale for every 32 weights, as the peers' int4
# has; Q8_0 has that too, CTranslate2's int8 one for each output.
BESIDE = {"int8": ("Q8_0", "native"), "int4": ("Q4_0", "native"), "bfloat16": ("bf16", "native"),
          "float32": ("bf16", "exact"), "fp32": ("bf16", "exact")}


class Side:
    """One process and what it was opened with; `with` opens it, and ends it. Between calls it is stopped: threads of
    some peers go on asking for work."""

    def __init__(self, arguments, program, model, adapters=None, **options):
        commands = {
            "graft": [arguments.build / "bench/peers_graft"],
            "llama.cpp": [arguments.llama_python, HERE / "llama_cpp_peer.py"],
            "CTranslate2": [arguments.ctranslate2_python, HERE / "ctranslate2_peer.py"],
            "onnxruntime-genai": [arguments.ort_genai_python, HERE / "ort_genai_peer.py"],
            "torch": [arguments.torch_python, HERE / "torch_peft.py"],
        }
        environment = dict(os.environ, GRAFT_THREADS=str(arguments.threads), OMP_NUM_THREADS=str(arguments.threads))
        self.process = subprocess.Popen([str(part) for part in commands[program]], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True, env=environment)
        self.opening = {"model": str(model), "adapters": {k: str(v) for k, v in (adapters or {}).items()}, **options}
        self.about = None

    def call(self, do, **fields):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended with status {self.process.wait()}")
        self.process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def __enter__(self):
        self.about = self.call("open", **self.opening)
        return self

    def __exit__(self, *failure):
        self.close()

    def close(self):
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def run(*command):
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def once(path, *command):
    """Runs a command that writes `path`, unless it is there. Returns the path."""
    if not path.exists():
        run(*command)
    return path


def convert(arguments, source, out, kind, *options):
    return once(out, arguments.build / "bin/graft", "convert", source, out, "--type", kind, *options)


def prepare(arguments):
    """Models and adapters in every side's format, made once."""
    graft, q4_1 = arguments.build / "bin/graft", arguments.model
    WORK.mkdir(parents=True, exist_ok=True)
    bf16 = convert(arguments, q4_1, WORK / "bf16.gguf", "bf16")
    for folder, source, kind in (("bf16", bf16, "bf16"), ("q4_1", q4_1, "f32")):
        convert(arguments, source, WORK / folder, kind)
    words = (ROOT / "LICENSE").read_text().split()
    for k in range(REQUESTS):  # modules that differ: each learns another eighth of a text, for three steps
        data, part = WORK / f"data{k}.jsonl", words[k * len(words) // REQUESTS:(k + 1) * len(words) // REQUESTS]
        pairs = [(part[n:n + 12], part[n + 12:n + 36]) for n in range(0, len(part) - 36, 12)]
        data.write_text("".join(json.dumps({"prompt": " ".join(a), "completion": " " + " ".join(b)}) + "\n"
                                for a, b in pairs))
        for method, options in (("lora", ["--rank", 16, "--lr", "2e-3"]), ("road", ["--lr", "1e-2"])):
            folder = WORK / f"{method}{k}"
            once(folder, graft, "train", "--model", bf16, "--method", method, "--targets", "all-linear", "--data", data,
                 "--out", folder, "--steps", 3, "--batch", 4, "--seed", k, *options)
        convert(arguments, WORK / f"lora{k}", WORK / f"lora{k}.gguf", "f16", "--model", bf16)
    return q4_1, bf16


def adapters(kind, suffix=""):
    return {f"{kind}{k}": WORK / f"{kind}{k}{suffix}" for k in range(REQUESTS)}


class Bench:
    def __init__(self, arguments, q4_1, bf16, prompts):
        self.arguments, self.q4_1, self.bf16, self.prompts = arguments, q4_1, bf16, prompts
        self.rows, self.about, self.part = [], {}, None

    def turns(self, sides, call):
        """[[answer of each side] of each round]"""
        answers = []
        for _ in range(self.arguments.rounds):
            answers.append([])
            for side in sides:
                answers[-1].append(call(side))
        return answers

    def row(self, section, what, peer, answers, value, unit, aim=None, less=False, **more):
        """value(answer) of graft (first) and of a peer (second)"""
        ours, theirs = [value(a[0]) for a in answers], [value(a[1]) for a in answers]
        ratios = [b / a if less else a / b for a, b in zip(ours, theirs)]
        row = {"part": self.part, "section": section, "what": what, "peer": peer, "unit": unit, "aim": aim,
               "graft": ours, "theirs": theirs, "ratio": [statistics.median(ratios), min(ratios), max(ratios)], **more}
        if "tokens" in answers[0][0]:
            row["alike"] = alike(answers[0][0]["tokens"], answers[0][1]["tokens"])
        self.rows.append(row)
        print(table.line(row), flush=True)

    def generations(self, sides, prompts, use, new):
        for side in sides:  # warms up, and compiles for these lengths
            side.call("generate", prompts=prompts, use=use, new=new)
        return self.turns(sides, lambda side: side.call("generate", prompts=prompts, use=use, new=new))

    def one_request(self, section, weights, peer, sides, aim=None):
        answers = self.generations(sides, [self.prompts[0]], [None], NEW)
        self.row(section, f"{weights}: decode, 1 request", peer, answers,
                 lambda a: (NEW - 1) / a["decode"], "tokens/s", aim)
        answers = self.generations(sides, [sum(self.prompts, [])[:LONG]], [None], 1)
        self.row(section, f"{weights}: prefill of {LONG} tokens", peer, answers, lambda a: LONG / a["prefill"],
                 "tokens/s", aim)

    def many_requests(self, section, weights, peer, sides, kind=None, aim=None):
        """Tokens made per second of prefill and decoding together."""
        label = {"lora": f"{REQUESTS} LoRA of rank 16", "road": f"{REQUESTS} RoAd", None: "no adapter"}[kind]
        use = [f"{kind}{k}" if kind else None for k in range(REQUESTS)]
        answers = self.generations(sides, self.prompts, use, NEW)
        self.row(section, f"{weights}: {REQUESTS} requests, {label}", peer, answers,
                 lambda a: REQUESTS * NEW / (a["prefill"] + a["decode"]), "tokens/s", aim)


def alike(ours, theirs):
    """Tokens until greedy continuations part, and all tokens."""
    same = 0
    for a, b in zip(ours, theirs):
        same += next((k for k, (x, y) in enumerate(zip(a, b)) if x != y), len(a))
    return [same, sum(len(a) for a in ours)]


def against_llama(bench, weights, model):
    a, section = bench.arguments, "Generation, beside llama.cpp"

    def theirs(**options):
        return Side(a, "llama.cpp", model, adapters("lora", ".gguf"), **options)

    with Side(a, "graft", model, adapters("lora"), precision="native") as ours:
        with theirs() as peer:
            bench.about |= {"graft": ours.about, "llama.cpp": peer.about}
            text = (ROOT / "LICENSE").read_text()
            if ours.call("tokens", text=text) != peer.call("tokens", text=text):
                raise RuntimeError("the sides make different tokens of one text")
            bench.one_request(section, weights, "llama.cpp", [ours, peer], 1.5)
            bench.many_requests(section, weights, "llama.cpp", [ours, peer])
            bench.many_requests(section, weights, "llama.cpp, one adapter after the other", [ours, peer], "lora", 4)
        with theirs(apart=True) as peer:
            bench.many_requests(section, weights, "llama.cpp, an adapter on each thread", [ours, peer], "lora", 4)


def by_llama(bench):
    """The model as llama.cpp quantises it."""
    return once(WORK / "q4_k_m.gguf", bench.arguments.llama_python, HERE / "llama_cpp_quantize.py", bench.bf16,
                WORK / "q4_k_m.gguf")


def beside(bench, kind, modules=None, **options):
    """graft's side beside a peer's type, and the name of its weights."""
    weights, precision = BESIDE[kind]
    model = convert(bench.arguments, bench.bf16, WORK / f"{weights.lower()}.gguf", weights.lower())
    return Side(bench.arguments, "graft", model, modules, precision=precision, **options), weights


def against_ctranslate2(bench, kind):
    """No adapters: it has none."""
    a, section, peer = bench.arguments, "Generation, beside CTranslate2", f"CTranslate2, {kind}"
    folder = once(WORK / f"ctranslate2-{kind}", a.ctranslate2_python.parent / "ct2-transformers-converter", "--model",
                  WORK / "bf16", "--output_dir", WORK / f"ctranslate2-{kind}", "--quantization", kind)
    graft, weights = beside(bench, kind)
    with graft as ours, Side(a, "CTranslate2", folder, compute_type=kind) as theirs:
        bench.about[peer] = theirs.about
        bench.one_request(section, weights, peer, [ours, theirs])
        bench.many_requests(section, weights, peer, [ours, theirs])


def against_ort_genai(bench, kind):
    """The model that takes adapters computes their products always, so it is not the one without."""
    a, section, peer = bench.arguments, "Generation, beside onnxruntime-genai", f"onnxruntime-genai, {kind}"

    def theirs(folder, *modules):
        once(folder, a.ort_genai_python, HERE / "ort_genai_model.py", WORK / "bf16", folder, kind, *modules)
        files = {module.name: folder / f"{module.name}.onnx_adapter" for module in modules}
        return Side(a, "onnxruntime-genai", folder, files)

    modules = adapters("lora")
    graft, weights = beside(bench, kind, modules)
    with graft as ours:
        with theirs(WORK / f"ort-genai-{kind}") as side:
            bench.about[peer] = side.about
            bench.one_request(section, weights, peer, [ours, side])
            bench.many_requests(section, weights, peer, [ours, side])
        with theirs(WORK / f"ort-genai-{kind}-lora", *modules.values()) as side:
            bench.many_requests(section, weights, f"{peer}, one adapter after the other", [ours, side], "lora")


def against_peft(bench, kind, dtype, compiled):
    """One kind of adapter, or none: a PEFT model cannot hold several kinds. Beside f32 graft computes exactly, with the
    same bf16 weights."""
    section = "Generation, beside transformers and PEFT"
    peer = f"{'PEFT, `adapter_names`' if kind else 'transformers'}, {dtype}" + (", compiled" if compiled else "")
    modules = adapters(kind) if kind else {}
    graft, weights = beside(bench, dtype, modules)
    with graft as ours, Side(bench.arguments, "torch", WORK / "bf16", modules, dtype=dtype, compile=compiled) as theirs:
        bench.about[peer] = theirs.about
        if kind is None:
            bench.one_request(section, weights, peer, [ours, theirs])
        bench.many_requests(section, weights, peer, [ours, theirs], kind, 8 if kind else None)


def training(bench, method, dtype, recompute, compiled):
    """One step at a time, in turn; every side's peak is that of its whole process. graft trains on the bf16 file: exactly
    beside f32, in native precision beside bf16. Its weights stay in the file: a step multiplies each by many rows."""
    graft, _ = beside(bench, dtype, packed=False)
    with graft as ours, Side(bench.arguments, "torch", WORK / "bf16", dtype=dtype, compile=compiled) as theirs:
        sides = [ours, theirs]
        for side in sides:
            side.call("train", sequences=bench.prompts, method=method, recompute=recompute)
        for side in sides:  # warms up
            side.call("step")
        answers = bench.turns(sides, lambda side: side.call("step"))
    label = {"lora": "LoRA of rank 16", "road": "RoAd"}[method]
    bench.row(f"Training step, {REQUESTS} sequences of {PROMPT} tokens, all linear layers",
              label + (", layers recomputed" if recompute else ""), f"PEFT, {dtype}" + (", compiled" if compiled else ""),
              answers, lambda answer: answer["seconds"] * 1e3, "ms", None if recompute else 1.5, less=True,
              peak_mb=[round(answer["memory"]["peak_mb"]) for answer in answers[-1]],
              losses=[[answer["loss"] for answer in turn] for turn in answers])


def loading(bench):
    """A new process each time; starting Python and importing is not counted."""
    for weights, model, packed in (("Q4_1", bench.q4_1, False), ("bf16", bench.bf16, False),
                                    ("bf16, packed", bench.bf16, True)):

        def load(program):
            side = Side(bench.arguments, program, model, precision="native", packed=packed)
            answer = side.call("load", text=SENTENCE, **side.opening)
            side.close()
            return answer

        answers = bench.turns(["graft", "llama.cpp"], load)
        memory = {key: [round(answer["memory"][key]) for answer in answers[-1]] for key in ("resident_mb", "of_files_mb")}
        bench.row("Loading: from opening the GGUF file to the first token", weights, "llama.cpp", answers,
                  lambda answer: answer["seconds"] * 1e3, "ms", "below 500 ms", less=True, **memory)


def parts():
    """name -> function of a Bench"""
    yield "llama-q4_1", lambda bench: against_llama(bench, "Q4_1", bench.q4_1)
    yield "llama-q4_k_m", lambda bench: against_llama(bench, "Q4_K_M", by_llama(bench))
    yield "llama-bf16", lambda bench: against_llama(bench, "bf16", bench.bf16)
    for kind in ("int8", "float32"):
        yield f"ctranslate2-{kind}", functools.partial(against_ctranslate2, kind=kind)
    for kind in ("int4", "fp32"):
        yield f"ort-genai-{kind}", functools.partial(against_ort_genai, kind=kind)
    for compiled in (False, True):
        for dtype in ("bfloat16", "float32"):
            for kind in (None, "lora", "road"):
                name = "-".join(["peft", dtype, kind or "none"] + ["compiled"] * compiled)
                yield name, functools.partial(against_peft, kind=kind, dtype=dtype, compiled=compiled)
            for method in ("lora", "road"):
                for recompute in (False, True):
                    name = "-".join(["train", dtype, method] + ["recompute"] * recompute + ["compiled"] * compiled)
                    yield name, functools.partial(training, method=method, dtype=dtype, recompute=recompute,
                                                  compiled=compiled)
    yield "load", loading


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--llama-python", type=Path, default=ROOT / ".venv/peers/bin/python")
    parser.add_argument("--ctranslate2-python", type=Path, default=ROOT / ".venv/peers/bin/python")
    parser.add_argument("--ort-genai-python", type=Path, default=ROOT / ".venv/peers/bin/python")
    parser.add_argument("--torch-python", type=Path, default=ROOT / ".venv/peers/bin/python")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", metavar="PART", help=", ".join(name for name, _ in parts()))
    parser.add_argument("--json", type=Path, default=ROOT / "bench/results/peers.json")
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    q4_1, bf16 = prepare(arguments)
    with Side(arguments, "graft", q4_1, precision="exact") as reader:
        tokens = reader.call("tokens", text=(ROOT / "LICENSE").read_text())["tokens"]
    bench = Bench(arguments, q4_1, bf16, [tokens[k * PROMPT:(k + 1) * PROMPT] for k in range(REQUESTS)])

    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    result = json.loads(arguments.json.read_text()) if arguments.json.exists() else {"rows": [], "about": {}}
    order = [name for name, _ in parts()]
    for name, measure in parts():
        if arguments.only is not None and name not in arguments.only:
            continue
        bench.part, bench.rows = name, []
        measure(bench)
        rows = [row for row in result["rows"] if row["part"] != name] + bench.rows
        result = {"threads": arguments.threads, "about": result["about"] | bench.about,
                  "rows": sorted(rows, key=lambda row: order.index(row["part"]))}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")  # what is measured stays, whatever comes
    if arguments.into:
        table.write(result, arguments.into)


if __name__ == "__main__":
    main()
