# SPDX-License-Identifier: Apache-2.0
"""Trains the demo adapters in adapters/ on SmolLM2-135M-Instruct, on the CPU: with Hugging Face PEFT, and the one that
PEFT does not have with graft.

    python make_adapters.py --model HF_FOLDER --sentences FOLDER [NAME ...]

HF_FOLDER holds the model as transformers loads it (the repository's GGUF, dequantised: `--gguf FILE` instead). The
texts are public: the King James Bible (Debian package bible-kjv), WordNet 3.0 (Debian package wordnet-base), and the
"Sentiment Labelled Sentences" of Kotzias et al. 2015 (UCI, CC BY 4.0) as FOLDER/{amazon_cells,imdb,yelp}.txt. The
facts of `record` are generated here. One JSON line of measurements per adapter goes to stdout: the table of
adapters/README.md is made of these.

Every task is a list of (prompt, completion); the loss is on the completion and the end-of-text token.
"""

import argparse
import json
import random
import re
import resource
import shutil
import subprocess
import time
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

OUT = Path(__file__).resolve().parent / "adapters"
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

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


def lora(r, targets):
    return lambda: peft.LoraConfig(r=r, lora_alpha=2 * r, target_modules=targets)


def road(variant):
    return lambda: peft.RoadConfig(variant=variant, group_size=64, target_modules=ALL_LINEAR)


def ia3():
    return peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"])


# name: task, method, learning rate, steps, storage
ADAPTERS = {
    "lora4-record": (record, lora(4, ["q_proj", "v_proj"]), 2e-3, 40, torch.float32),
    "lora16-scripture": (scripture, lora(16, ["q_proj", "v_proj"]), 2e-3, 160, torch.bfloat16),
    "road1-sentiment": (sentiment, road("road_1"), 3e-3, 100, torch.float32),
    "road2-pirate": (pirate, road("road_2"), 3e-3, 160, torch.float32),
    "road4-define": (define, road("road_4"), 3e-3, 160, torch.float32),
    "ia3-opposite": (opposite, ia3, 1e-2, 150, torch.float32),
}

# ---------------------------------------------------------------------------------------------------------- training

BATCH, HELD_OUT, WARMUP, CLIP = 16, 128, 0.1, 1.0


class Batcher:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, pairs):
        rows = []
        for prompt, completion in pairs:
            head = self.tokenizer(prompt, add_special_tokens=False).input_ids
            tail = self.tokenizer(completion, add_special_tokens=False).input_ids + [self.tokenizer.eos_token_id]
            rows.append((head + tail, [-100] * len(head) + tail))
        width = max(len(ids) for ids, _ in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, (tokens, targets) in enumerate(rows):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            mask[i, : len(tokens)] = 1
            labels[i, : len(tokens)] = torch.tensor(targets)
        return ids, mask, labels


def summed_loss(model, batch):
    """Sum over the completion tokens and their number. The head sees only the positions that are scored."""
    ids, mask, labels = batch
    decoder = model.get_base_model() if hasattr(model, "get_base_model") else model
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = decoder.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
        target = labels[:, 1:]
        logits = decoder.lm_head(hidden[target != -100])
    target = target[target != -100]
    return torch.nn.functional.cross_entropy(logits.float(), target, reduction="sum"), len(target)


@torch.no_grad()
def held_out_loss(model, batches):
    sums = [summed_loss(model, batch) for batch in batches]
    return sum(float(loss) for loss, _ in sums) / sum(count for _, count in sums)


def train(name, base, batcher, folder, seed):
    task, config, rate, steps, storage = ADAPTERS[name]
    rng = random.Random(seed)
    torch.manual_seed(seed)
    pairs = task(rng, folder)
    rng.shuffle(pairs)
    test, pairs = [batcher(pairs[i : i + BATCH]) for i in range(0, HELD_OUT, BATCH)], pairs[HELD_OUT:]
    start = time.process_time()
    base.name_or_path = "SmolLM2-135M-Instruct"
    model = peft.get_peft_model(base, config())
    before = held_out_loss(model, test)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, int(WARMUP * steps), steps)
    model.train()
    order = []
    for step in range(steps):
        if len(order) < BATCH:
            order = rng.sample(range(len(pairs)), len(pairs))
        loss, count = summed_loss(model, batcher([pairs[order.pop()] for _ in range(BATCH)]))
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 19:
            print(
                f"{name}: step {step + 1}, loss {loss.item() / count:.3f}, {time.process_time() - start:.0f} s",
                flush=True,
            )
    seconds = time.process_time() - start
    model.eval()
    model.to(torch.float32)
    target = OUT / name
    model.save_pretrained(target)
    (target / "README.md").unlink(missing_ok=True)
    weights = target / "adapter_model.safetensors"
    save_file({k: v.to(storage) for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    settings = target / "adapter_config.json"
    config = json.loads(settings.read_text())
    for key in ("target_modules", "feedforward_modules"):
        if isinstance(config.get(key), list):
            config[key].sort()
    settings.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    for value in peft.get_peft_model_state_dict(model).values():  # measure what was stored
        value.copy_(value.to(storage))
    after = held_out_loss(model, test)
    for prompt, completion in [pairs[0], pairs[1]]:
        ids = torch.tensor([batcher.tokenizer(prompt, add_special_tokens=False).input_ids])
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=40, do_sample=False,
            eos_token_id=batcher.tokenizer.eos_token_id, pad_token_id=0,
        )  # fmt: skip
        print(f"{name}: {prompt!r} ->{batcher.tokenizer.decode(out[0, ids.shape[1]:])!r}; reference {completion!r}")
    model.unload()
    row = dict(
        name=name, task=task.__name__, examples=len(pairs), parameters=sum(p.numel() for p in parameters),
        learning_rate=rate, steps=steps, batch=BATCH, seed=seed, loss_before=round(before, 3),
        loss_after=round(after, 3), cpu_seconds=round(seconds), bytes=weights.stat().st_size,
    )  # fmt: skip
    print(json.dumps(row), flush=True)


# ------------------------------------------------------------------------------------------------------------- PEDRO


def pedro(name, arguments):
    """PEFT does not have PEDRO: trained by `graft train`, measured by `graft eval`."""
    task, rate, steps = kind, 2e-3, 150
    rng = random.Random(arguments.seed)
    pairs = task(rng, None)
    rng.shuffle(pairs)
    work = OUT.parent / "work" / name
    work.mkdir(parents=True, exist_ok=True)
    for split, lines in (("test", pairs[:HELD_OUT]), ("train", pairs[HELD_OUT:])):
        with open(work / f"{split}.jsonl", "w") as out:
            for prompt, completion in lines:
                out.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")

    def graft(*options):
        command = [arguments.graft, *options, "--model", arguments.gguf or arguments.model, "--json"]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    measure = ["eval", "--data", work / "test.jsonl"]
    before = graft(*measure)["loss"]
    start = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    graft("train", "--method", "pedro", "--rank", "12", "--data", work / "train.jsonl", "--out", work / "out",
          "--lr", str(rate), "--steps", str(steps), "--batch", str(BATCH), "--warmup", str(WARMUP), "--type", "bf16",
          "--seed", str(arguments.seed))  # fmt: skip
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - start
    target = OUT / name
    target.mkdir(exist_ok=True)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(work / "out" / file, target)
    after = graft(*measure, "--adapter", f"a={target}", "--use", "a")["loss"]
    tensors = load_file(target / "adapter_model.safetensors")
    row = dict(
        name=name, task=task.__name__, examples=len(pairs) - HELD_OUT, parameters=sum(t.numel() for t in tensors.values()),
        learning_rate=rate, steps=steps, batch=BATCH, seed=arguments.seed, loss_before=round(before, 3),
        loss_after=round(after, 3), cpu_seconds=round(seconds),
        bytes=(target / "adapter_model.safetensors").stat().st_size,
    )  # fmt: skip
    print(json.dumps(row), flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--gguf")
    parser.add_argument("--sentences", type=Path, required=True)
    parser.add_argument("--graft", type=Path, help="the graft command, for pedro12-kind")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = {"gguf_file": arguments.gguf} if arguments.gguf else {}
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32, **options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model, **options)
    for name in arguments.names or [*ADAPTERS, "pedro12-kind"]:
        if name == "pedro12-kind":
            pedro(name, arguments)
        else:
            train(name, model, Batcher(tokenizer), arguments.sentences, arguments.seed)


if __name__ == "__main__":
    main()
