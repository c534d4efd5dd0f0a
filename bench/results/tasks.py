# SPDX-License-Identifier: Apache-2.0
"""What models are trained and evaluated on. A task is a function of the data's folder and a split ("train", "dev" or
"test") that gives (prompt, completion, choices). docs/results.md says where the data come from.
"""

import hashlib
import json
import re
import subprocess

PART = 300  # lines of each half of SST-2 with its labels skewed


def sst2(data, split):
    """SST-2 (GLUE): columns sentence and label; docs/results.md says where it comes from."""
    lines = (data / "sst2" / f"{split}.tsv").read_text().splitlines()[1:]
    for line in lines:
        sentence, label = line.rsplit("\t", 1)
        yield f"Review: {sentence.strip()}\nSentiment:", [" negative", " positive"][int(label)], [" negative", " positive"]


def boolq(data, split):
    """BoolQ as LLM-Adapters writes it; validation data are the last lines of train."""
    items = json.loads((data / "commonsense" / "boolq" / f"{'test' if split == 'test' else 'train'}.json").read_text())
    if split != "test":
        items = items[-1000:] if split == "dev" else items[:-1000]
    for item in items:
        yield item["instruction"].strip() + "\nAnswer:", " " + item["answer"].strip(), [" true", " false"]


def skewed(part):
    """The first 2 * PART examples in two halves; the first has 80 % of the negative ones, as in the paper's code."""

    def task(data, split):
        examples = subset("sst2", data, split, 2 * PART)
        negative = [e for e in examples if e[1] == " negative"]
        positive = [e for e in examples if e[1] == " positive"]
        cut = round(0.8 * len(negative))
        halves = negative[:cut] + positive[: PART - cut], negative[cut:] + positive[PART - cut :]
        return halves[part]

    return task


def split_of(text):
    """For texts that come without splits: half of them to train."""
    digit = hashlib.sha256(text.encode()).digest()[0] % 10
    return "dev" if digit < 2 else "test" if digit < 5 else "train"


def sentences(data, name):
    for line in (data / "sentiment-sentences" / f"{name}.txt").read_text().strip().split("\n"):
        text, label = line.rsplit("\t", 1)
        yield " ".join(text.split()), [" negative", " positive"][int(label)]


def reviews(name):
    def task(data, split):
        for text, label in sentences(data, name):
            if split_of(text) == split:
                yield f"Review: {text}\nSentiment:", label, [" negative", " positive"]

    return task


def plain(texts):
    """A language model's task: a text behind its first three words."""

    def task(data, split):
        for text in texts(data):
            words = text.split()
            if split_of(text) == split and 6 <= len(words) <= 45:
                yield " ".join(words[:3]), " " + " ".join(words[3:]), None

    return task


def verses(_):
    """The King James Bible, from Debian's package bible-kjv."""
    text = subprocess.run(["bible", "-f", "Gen1:1-Rev22:21"], capture_output=True, text=True, check=True).stdout
    return [line.split(" ", 1)[1].strip() for line in text.splitlines() if re.match(r"\w+:\d+ ", line)]


def questions(data):
    for item in json.loads((data / "commonsense" / "ARC-Easy" / "train.json").read_text()):
        yield re.search(r"question: (.*?)\s*Answer1:", item["instruction"], re.S).group(1)


DOMAINS = {"Amazon": "amazon_cells", "Yelp": "yelp", "IMDb": "imdb"}
TASKS = {
    "sst2": sst2, "sst2 part 0": skewed(0), "sst2 part 1": skewed(1), "boolq": boolq,
    "scripture": plain(verses), "questions": plain(questions),
}  # fmt: skip
for domain, name in DOMAINS.items():
    TASKS[domain] = reviews(name)
    TASKS[f"{domain} text"] = plain(lambda data, name=name: (text for text, _ in sentences(data, name)))


def subset(task, data, split, count):
    """The first `count` examples in an order that depends on the text alone, so that subsets nest."""
    return sorted(TASKS[task](data, split), key=lambda e: hashlib.sha256(e[0].encode()).digest())[:count]


def write_lines(examples, path, choose):
    with open(path, "w") as out:
        for prompt, completion, choices in examples:
            line = {"prompt": prompt, "completion": completion, **({"choices": choices} if choose else {})}
            out.write(json.dumps(line) + "\n")


def write_split(task, data, split, count, path):
    write_lines(subset(task, data, split, count), path, split != "train")
