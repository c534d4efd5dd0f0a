# SPDX-License-Identifier: Apache-2.0
"""Compares graft's tokenizers with Hugging Face's on mixed text, ids and decoded text, line by line.

    python tests/text/compare_hf.py TOKENIZE_LINES TOKENIZER [--lines 2000] [--seed 7] [--every-character]

TOKENIZE_LINES is the built program of tests/text/tokenize_lines.cpp. TOKENIZER is a tokenizer.json, or a GGUF file with
byte-level BPE, from which the HF tokenizer is then built: vocabulary and merges of the file, the pre-tokenizer of the
original model. --every-character adds a line for each assigned character of Unicode. Needs: tokenizers, gguf.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import unicodedata

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "golden"))
from text_lines import mixed_lines  # noqa: E402

WORDS = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
         r"|\s+(?!\S)|\s+")
LLAMA3, QWEN2 = WORDS.replace("DIGITS", r"\p{N}{1,3}"), WORDS.replace("DIGITS", r"\p{N}")


def byte_level_pre_tokenizer(name):
    """The pre-tokenizer of the models whose GGUF files carry `name`."""
    byte_level = pre_tokenizers.ByteLevel
    if name == "gpt-2":
        return byte_level(add_prefix_space=False)
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(True), byte_level(add_prefix_space=False)])
    pattern = {"llama-bpe": LLAMA3, "qwen2": QWEN2}[name]
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    byte_level(add_prefix_space=False, use_regex=False)])


def from_gguf(path):
    from gguf import GGUFReader
    fields = {key: field.contents() for key, field in GGUFReader(path).fields.items() if key.startswith("tokenizer.")}
    assert fields["tokenizer.ggml.model"] == "gpt2", fields["tokenizer.ggml.model"]
    tokens, name = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.pre"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: k for k, token in enumerate(tokens)}, merges,
                                     ignore_merges=name == "llama-bpe"))
    tokenizer.pre_tokenizer = byte_level_pre_tokenizer(name)
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"]):
        if kind in (3, 4):
            tokenizer.add_tokens([AddedToken(token, special=kind == 3, normalized=False)])
    return tokenizer


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("program")
    parser.add_argument("tokenizer")
    parser.add_argument("--lines", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--every-character", action="store_true")
    options = parser.parse_args()

    tokenizer = from_gguf(options.tokenizer) if options.tokenizer.endswith(".gguf") else Tokenizer.from_file(options.tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    lines = mixed_lines(options.lines, added[:20], options.seed)
    if options.every_character:
        lines += [f"a{chr(k)}1 {chr(k)}{chr(k)} b{chr(k)}\n" for k in range(0x110000)
                  if not 0xD800 <= k < 0xE000 and unicodedata.category(chr(k)) != "Cn"]
    run = subprocess.run([options.program, options.tokenizer], input="".join(json.dumps(line) + "\n" for line in lines),
                         capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    results = [json.loads(line) for line in run.stdout.split("\n")[:-1]]
    assert len(results) == len(lines), (len(results), len(lines))
    wrong = 0
    for line, result in zip(lines, results):
        ids = tokenizer.encode(line).ids
        decoded = tokenizer.decode(ids, skip_special_tokens=False)
        if ids != result["ids"] or decoded != result["decoded"]:
            wrong += 1
            if wrong <= 20:
                print(f"{line!r}\n  hf    {ids} {decoded!r}\n  graft {result['ids']} {result['decoded']!r}")
    print(f"{len(lines)} lines, {sum(len(r['ids']) for r in results)} tokens, {wrong} lines differ; {run.stderr.strip()}")
    sys.exit(wrong != 0)


if __name__ == "__main__":
    main()
