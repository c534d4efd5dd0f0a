# SPDX-License-Identifier: Apache-2.0
"""Golden files of the tokenizer tests: tests/golden/data/text_*.

    python tests/golden/make_text.py [--smollm2 FILE.gguf]

One tiny tokenizer per family, trained here with the family's own normaliser, pre-tokenizer, added tokens and
post-processor, saved as tokenizer.json; and what Hugging Face's tokenizers (or sentencepiece) make of text_lines.json
with it. With --smollm2, also the tokens of the real model's tokenizer. Needs: tokenizers, sentencepiece, gguf.
"""
import argparse
import io
import json
import pathlib
import sys
from random import Random

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from text_lines import CODE, SENTENCES, mixed_lines

HERE = pathlib.Path(__file__).resolve().parent
DATA = HERE / "data"
sys.path.insert(0, str(HERE.parent / "text"))
from compare_hf import byte_level_pre_tokenizer, from_gguf  # noqa: E402

SPECIALS = ["<|endoftext|>", "<|begin_of_text|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "<unk>",
            "<mask>", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "[PAD]", "<tool_call>"]
CORPUS = [line for line in mixed_lines(1500, seed=1) if line] + (SENTENCES + CODE) * 3


def special(text, **options):
    return AddedToken(text, special=True, **{"normalized": False, **options})


def byte_level(pre_tokenizer, added, normalizer=None, words=(), **options):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, show_progress=False,
                                                              initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    state = json.loads(tokenizer.to_str())
    state["model"].update(options)
    for word in words:  # tokens that no merge reaches: only ignore_merges finds them
        state["model"]["vocab"].setdefault(word, len(state["model"]["vocab"]))
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added)
    return tokenizer


def gpt2():
    tokenizer = byte_level(byte_level_pre_tokenizer("gpt-2"), [special("<|endoftext|>", normalized=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer, {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}


def smollm():
    tokenizer = byte_level(byte_level_pre_tokenizer("smollm"),
                           [special(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    return tokenizer, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "unk_token": "<|endoftext|>"}


def llama3():
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    words = ["Ġantidisestablishmentarianism", "rock", "007", "345", "ĠGROUP", "Ġgrep", "???!!!...,,,;;;:::---___***///"]
    tokenizer = byte_level(byte_level_pre_tokenizer("llama-bpe"), [special(name) for name in names], words=words,
                           ignore_merges=True)
    template = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|>:1 $B:1",
        special_tokens=[(names[0], tokenizer.token_to_id(names[0]))])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(), template])
    return tokenizer, {"bos_token": names[0], "eos_token": "<|eot_id|>"}


def qwen2():
    tokenizer = byte_level(byte_level_pre_tokenizer("qwen2"), [
        special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>"),
        AddedToken("<tool_call>", special=False, normalized=False)], normalizers.NFC())
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer, {"bos_token": None, "eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>",
                       "add_bos_token": False}


def roberta():
    tokenizer = byte_level(byte_level_pre_tokenizer("gpt-2"), [
        special("<s>", normalized=True), special("<pad>", normalized=True), special("</s>", normalized=True),
        special("<unk>", normalized=True), special("<mask>", lstrip=True)])
    ids = {name: (name, tokenizer.token_to_id(name)) for name in ("<s>", "</s>")}
    tokenizer.post_processor = processors.RobertaProcessing(ids["</s>"], ids["<s>"], trim_offsets=True,
                                                            add_prefix_space=False)
    return tokenizer, {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}


def llama2(metaspace=False):
    """As converted from SentencePiece. With `metaspace`, as newer conversions have it: one space, at the start only."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace(split=True)
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, limit_alphabet=150, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    first = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = sorted(model["vocab"], key=model["vocab"].get)
    tokenizer = Tokenizer(models.BPE({piece: k for k, piece in enumerate(first + pieces)},
                                     [tuple(merge) for merge in model["merges"]], unk_token="<unk>", fuse_unk=True,
                                     byte_fallback=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.add_tokens([special(token) for token in first[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tokenizer, {"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}, "unk_token": "<unk>",
                       "add_bos_token": True, "add_eos_token": False}


def bert(cased=False):
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=900, limit_alphabet=300, show_progress=False,
                                                                    special_tokens=[special(name) for name in names]))
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", cls), ("[SEP]", sep)])
    return tokenizer, {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def expectations(tokenizer, lines):
    """ids and decoded text of every line ("decoded" is null where it is the line itself); "plain" are the ids with
    special tokens not parsed, "visible" the decoded text without special tokens, both only where they differ."""
    out = []
    for line in lines:
        ids = tokenizer.encode(line).ids
        entry = {"ids": ids}
        decoded, visible = (tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True))
        if decoded != line:
            entry["decoded"] = decoded
        if visible != decoded:
            entry["visible"] = visible
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(line).ids
        tokenizer.encode_special_tokens = False
        if plain != ids:
            entry["plain"] = plain
        out.append(entry)
    return out


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(value, list):
        text = "[\n" + ",\n".join(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) for entry in value) + "\n]\n"
    else:
        text = json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
    path.write_text(text, encoding="utf-8")


def write_family(name, tokenizer, config, lines):
    folder = DATA / f"text_{name}"
    write(folder / "tokenizer.json", json.loads(tokenizer.to_str()))
    write(folder / "tokenizer_config.json", config)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    pair = tokenizer.encode("Is it so?", "It is: 42 ünits.")
    write(folder / "expected.json", {"lines": expectations(tokenizer, lines),
                                     "pair": {"ids": pair.ids, "type_ids": pair.type_ids}})


def write_byte_runs(name):
    """What ids decode to where runs of <0xNN> tokens are UTF-8, broken, unfinished, or begin the text."""
    tokenizer = Tokenizer.from_file(str(DATA / f"text_{name}/tokenizer.json"))
    random = Random(7)
    entries = []
    for _ in range(300):
        ids = []
        for _ in range(random.randint(1, 4)):
            run = list(random.choice(["é", "€", "🙂", "a", " ", "é€", "中a🙂"]).encode())
            if random.random() < 0.5:  # lose, repeat or change a byte
                at = random.randrange(len(run))
                run[at : at + 1] = random.choice([[], [run[at]] * 2, [random.randrange(256)]])
            ids += [tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in run]
            if random.random() < 0.6:
                ids.append(random.choice([0, 1, 2, random.randrange(259, tokenizer.get_vocab_size())]))
        texts = [tokenizer.decode(ids, skip_special_tokens=skip) for skip in (False, True)]
        entries.append({"ids": ids, "decoded": texts[0], "visible": texts[1]})
    write(DATA / f"text_{name}/byte_runs.json", entries)


def write_sentencepiece(lines):
    """A model with scores and no merges, as GGUF files of Llama 2 have it, and SentencePiece's own answers."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in CORPUS if "\0" not in line]), model_writer=model, vocab_size=800,
        model_type="bpe", byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity",
        remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True, num_threads=1,
        minloglevel=2)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    count = processor.get_piece_size()
    kind = lambda k: (2 if processor.is_unknown(k) else 3 if processor.is_control(k) else 5 if processor.is_unused(k)
                      else 6 if processor.is_byte(k) else 1)
    entries = []
    for line in lines:
        if "\0" not in line:
            ids = processor.encode(line)
            entries.append({"text": line, "ids": ids, "decoded": processor.decode(ids)})
    write(DATA / "text_sentencepiece.json", {
        "tokens": [processor.id_to_piece(k) for k in range(count)], "scores": [processor.get_score(k) for k in range(count)],
        "types": [kind(k) for k in range(count)], "lines": entries})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--smollm2")
    options = parser.parse_args()
    lines = [line[:160] for line in mixed_lines(260, SPECIALS)]
    write(DATA / "text_lines.json", lines)
    write_family("gpt2", *gpt2(), lines)
    write_family("smollm", *smollm(), lines)
    write_family("llama3", *llama3(), lines)
    write_family("qwen2", *qwen2(), lines)
    write_family("roberta", *roberta(), lines)
    write_family("llama2", *llama2(), lines)
    write_family("llama2_metaspace", *llama2(metaspace=True), lines)
    for name in ("llama2", "llama2_metaspace"):
        write_byte_runs(name)
    write_family("bert", *bert(), lines)
    write_family("bert_cased", *bert(cased=True), lines)
    write_sentencepiece(lines)
    if options.smollm2:
        real = mixed_lines(300, ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<jupyter_code>"], seed=3)
        tokenizer = from_gguf(options.smollm2)
        write(DATA / "text_smollm2.json", [{"text": line, **entry} for line, entry in zip(real, expectations(tokenizer, real))])


if __name__ == "__main__":
    main()
