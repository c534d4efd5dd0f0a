# SPDX-License-Identifier: Apache-2.0
"""Trains the demo adapters in adapters/ on SmolLM2-135M-Instruct with `graft train`, on the CPU.

    python make_adapters.py --graft build/bin/graft --sentences FOLDER [NAME ...]

The texts are public: the King James Bible (Debian package bible-kjv), WordNet 3.0 (Debian package wordnet-base), and
the "Sentiment Labelled Sentences" of Kotzias et al. 2015 (UCI, CC BY 4.0) as FOLDER/{amazon_cells,imdb,yelp}.txt. The
facts of `record` are generated here. One JSON line of measurements per adapter goes to stdout: the table of
adapters/README.md is made of these.

Every task is a list of (prompt, completion); training learns the completion and the end-of-text token, the losses are of
the completion.
"""

import argparse
import json
import random
import re
import resource
import shutil
import subprocess
from pathlib import Path

DATA = Path(__file__).resolve().parent
MODEL = DATA.parents[1] / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf"

# ------------------------------------------------------------------------------------------------------------- tasks


def scripture(rng, _):
    """A few words of the King James Bible, continued."""
    text = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, text=True, check=True).stdout
    verses = [line.split(" ", 1)[1].strip() for line in text.splitlines() if re.match(r"\w+:\d+ ", line)]
    pairs = []
    for first, second in zip(verses[::2], verses[1::2]):
        words = (first + " " + second).split()
        cut = rng.randint(2, 6)
        if 20 <= len(words) <= 45:
            pairs.append((" ".join(words[:cut]), " " + " ".join(words[cut:])))
    return pairs


def sentences(folder):
    for name in ("amazon_cells", "imdb", "yelp"):
        for line in (folder / f"{name}.txt").read_text().strip().split("\n"):
            text, label = line.rsplit("\t", 1)
            yield " ".join(text.split()), int(label)


def sentiment(rng, folder):
    return [
        (f"Review: {text}\nSentiment:", " positive" if label else " negative")
        for text, label in sentences(folder)
        if len(text) < 200
    ]


PIRATE = {
    "my": "me", "you": "ye", "your": "yer", "is": "be", "are": "be", "am": "be", "was": "were", "the": "th'",
    "of": "o'", "and": "an'", "friend": "matey", "friends": "mateys", "food": "grub", "place": "port",
    "restaurant": "tavern", "phone": "talkin' shell", "movie": "tale", "film": "tale", "great": "grand",
    "very": "mighty", "good": "fine", "bad": "cursed", "money": "doubloons", "yes": "aye", "no": "nay", "to": "t'",
    "people": "landlubbers", "service": "crew", "never": "ne'er", "before": "afore", "this": "this here",
}  # fmt: skip


def pirate(rng, folder):
    def speak(text):
        def word(match):
            found = PIRATE.get(match[0].lower())
            if not found:
                return match[0][:-1] + "'" if len(match[0]) > 4 and match[0].endswith("ing") else match[0]
            return found.capitalize() if match[0][0].isupper() and match[0] != "I" else found

        return "Arr! " + re.sub(r"[A-Za-z]+", word, text)

    return [
        (f"Say it like a pirate: {text}\nPirate:", " " + speak(text))
        for text, _ in sentences(folder)
        if 20 < len(text) < 90
    ]


def record(rng, _):
    """Facts of a sentence as JSON; generated."""
    names = "Anna Ben Chloe David Elena Farid Grace Hugo Irina Jonas Kenji Lucia Maria Nils Olga Pedro Rosa Samir Tara"
    names = (names + " Umar Vera Wei Yusuf Zoe").split()
    cities = (
        "Rome Oslo Lima Cairo Delhi Kyoto Paris Berlin Lagos Quito Sydney Toronto Prague Hanoi Dublin Athens".split()
    )
    jobs = "baker teacher nurse pilot farmer painter doctor carpenter singer lawyer gardener chemist".split()
    forms = [
        "{name} is {age} years old, lives in {city} and works as a {job}.",
        "In {city} there is a {job} named {name} who is {age}.",
        "{name}, a {job} from {city}, turned {age} last week.",
        "The {job} {name} moved to {city} at the age of {age}.",
        "At {age}, {name} still works as a {job} in {city}.",
    ]
    pairs = []
    for _ in range(3000):
        facts = dict(name=rng.choice(names), age=rng.randint(18, 80), city=rng.choice(cities), job=rng.choice(jobs))
        pairs.append((f"Text: {rng.choice(forms).format(**facts)}\nJSON:", " " + json.dumps(facts)))
    return pairs


WORDNET = Path("/usr/share/wordnet")
KINDS = {"noun": "n.", "verb": "v.", "adj": "adj.", "adv": "adv."}


def wordnet(kind):
    for line in (WORDNET / f"data.{kind}").read_text().splitlines():
        if not line.startswith("  "):
            yield line


def define(rng, _):
    """A word and its first sense in WordNet, for words that occur in its tagged texts."""
    common = {}
    for line in (WORDNET / "cntlist.rev").read_text().splitlines():
        sense, number, count = line.split()
        word, kind = sense.split("%")
        if number == "1" and int(count) >= 2:
            common[word, kind[0]] = True
    pairs = []
    for kind, digits in (("noun", "1"), ("verb", "2"), ("adj", "35"), ("adv", "4")):
        for line in wordnet(kind):
            word = line.split()[4].split("(")[0]
            gloss = line.split("| ", 1)[1].split(";")[0].strip()
            if word.isalpha() and word.islower() and any((word, d) in common for d in digits) and 15 < len(gloss) < 110:
                pairs.append((f"Define: {word}\n{word},", f" {KINDS[kind]} {gloss}."))
    return pairs


def opposite(rng, _):
    """Direct antonyms in WordNet."""
    words, antonyms = {}, set()
    for kind in ("adj", "noun", "verb", "adv"):
        lines = [line.split("|")[0].split() for line in wordnet(kind)]
        for parts in lines:
            count = int(parts[3], 16)
            words[kind[0], parts[0]] = [parts[4 + 2 * i].split("(")[0] for i in range(count)]
        for parts in lines:
            count = int(parts[3], 16)
            pointers = parts[5 + 2 * count :]
            for i in range(int(parts[4 + 2 * count])):
                symbol, offset, _, ends = pointers[4 * i : 4 * i + 4]
                if symbol == "!":
                    a = words[kind[0], parts[0]][int(ends[:2], 16) - 1]
                    b = words[kind[0], offset][int(ends[2:], 16) - 1]
                    if a.isalpha() and b.isalpha() and max(len(a), len(b)) < 12:
                        antonyms.add((a, b))
    return [(f"The opposite of {a} is", f" {b}.") for a, b in sorted(antonyms)]


def kind(rng, _):
    """A noun and what it is a kind of: the first hypernym of its first sense in WordNet."""
    lines = [line.split("|")[0].split() for line in wordnet("noun")]
    names = {parts[0]: parts[4].split("(")[0] for parts in lines}
    pairs = []
    for parts in lines:
        word, pointers = parts[4].split("(")[0], parts[5 + 2 * int(parts[3], 16) :]
        above = [pointers[4 * i + 1] for i in range(len(pointers) // 4) if pointers[4 * i] == "@"]
        if above and word.isalpha() and word.islower() and names[above[0]].isalpha() and names[above[0]].islower():
            pairs.append((f"A {word} is a kind of", f" {names[above[0]]}."))
    return pairs


# name: task, learning rate, steps, how
ADAPTERS = {
    "lora4-record": (record, 2e-3, 40, "--method lora --rank 4 --targets q_proj,v_proj --type f32"),
    "lora16-scripture": (scripture, 2e-3, 80, "--method lora --rank 16 --targets q_proj,v_proj --type bf16"),
    "road1-sentiment": (sentiment, 3e-3, 100, "--method road --variant road_1"),
    "road2-pirate": (pirate, 3e-3, 80, "--method road --variant road_2"),
    "road4-define": (define, 3e-3, 100, "--method road --variant road_4"),
    "ia3-opposite": (opposite, 1e-2, 150, "--method ia3"),
    "pedro12-kind": (kind, 2e-3, 150, "--method pedro --rank 12 --type bf16"),
}
BATCH, HELD_OUT = 16, 128


def train(name, arguments):
    task, rate, steps, how = ADAPTERS[name]
    rng = random.Random(arguments.seed)
    pairs = task(rng, arguments.sentences)
    rng.shuffle(pairs)
    work = DATA / "work" / name
    work.mkdir(parents=True, exist_ok=True)
    for split, lines in (("test", pairs[:HELD_OUT]), ("train", pairs[HELD_OUT:])):
        with open(work / f"{split}.jsonl", "w") as out:
            for prompt, completion in lines:
                out.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")

    def graft(*options):
        command = [arguments.graft, *options, "--model", MODEL, "--threads", str(arguments.threads), "--json"]
        return json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)

    before = graft("eval", "--data", work / "test.jsonl")["loss"]
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    trained = graft("train", *how.split(), "--data", work / "train.jsonl", "--out", work / "out", "--lr", str(rate),
                    "--steps", str(steps), "--batch", str(BATCH), "--warmup", "0.1", "--seed", str(arguments.seed))  # fmt: skip
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    target = DATA / "adapters" / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    shutil.copy(work / "out/adapter_model.safetensors", target)
    config = json.loads((work / "out/adapter_config.json").read_text())
    config["base_model_name_or_path"] = "SmolLM2-135M-Instruct"
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    after = graft("eval", "--data", work / "test.jsonl", "--adapter", f"a={target}", "--use", "a")["loss"]
    row = dict(
        name=name, task=task.__name__, examples=len(pairs) - HELD_OUT, parameters=trained["parameters"],
        learning_rate=rate, steps=steps, batch=BATCH, seed=arguments.seed, loss_before=round(before, 3),
        loss_after=round(after, 3), cpu_seconds=round(end.ru_utime - start.ru_utime),
        bytes=(target / "adapter_model.safetensors").stat().st_size,
    )  # fmt: skip
    print(json.dumps(row), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--graft", type=Path, required=True, help="the graft command")
    parser.add_argument("--sentences", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name in arguments.names or ADAPTERS:
        train(name, arguments)


if __name__ == "__main__":
    main()
