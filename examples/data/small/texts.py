# SPDX-License-Identifier: Apache-2.0
"""The texts that the embedded model and its modules were trained on, from Debian packages whose content is in the
public domain:

    apt-get install bible-kjv jargon-text dict-devil libsqlite3-dev tzdata
    python3 texts.py FOLDER

    base/scripture.txt, base/hackers.txt    what the model is made from: the King James Bible without its psalms, and the
                                            Jargon File
    NAME.train.jsonl, NAME.test.jsonl       what modules learn, none of it seen by the model: psalms; satire (Bierce's
                                            Devil's Dictionary); code (SQLite's C header); zones (the time zone rules)

A line is a passage: {"prompt": its first bytes up to a space, "completion": the rest}. Every fifth passage is for tests.
"""

import gzip
import json
import re
import subprocess
import sys
from pathlib import Path

PASSAGE, PROMPT = 240, 48  # bytes


def bible(verses):
    """Lines "Ge1:1 In the beginning ..." without their labels."""
    lines = subprocess.run(["bible", "-f", verses], capture_output=True, text=True, check=True).stdout.splitlines()
    return "\n".join(line.split(" ", 1)[1] for line in lines) + "\n"


def jargon():
    text = gzip.open("/usr/share/doc/jargon-text/jargon.txt.gz").read().decode("utf-8", "replace")
    text = text.encode("ascii", "ignore").decode().replace("\r", "")
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text))


def devil():
    text = gzip.open("/usr/share/dictd/devil.dict.dz").read().decode("latin-1")
    text = text.encode("ascii", "ignore").decode()
    return text[text.index("ABASEMENT") :]


def passages(text):
    """Cut at line ends where possible, so that a passage begins like a line."""
    at = 0
    while at + PASSAGE < len(text):
        end = text.rfind("\n", at + PASSAGE // 2, at + PASSAGE)
        end = end + 1 if end > 0 else at + PASSAGE
        yield text[at:end]
        at = end


def write_domain(folder, name, text, most=1500):
    kept = [p for p in passages(text) if len(p) > 2 * PROMPT and len(p[:PROMPT].split()) > 2][:most]
    for split, lines in (
        ("test", kept[::5]),
        ("train", [p for k, p in enumerate(kept) if k % 5]),
    ):
        with open(folder / f"{name}.{split}.jsonl", "w") as out:
            for passage in lines:
                cut = passage.rfind(" ", PROMPT // 2, PROMPT)
                cut = cut + 1 if cut > 0 else PROMPT
                out.write(json.dumps({"prompt": passage[:cut], "completion": passage[cut:]}) + "\n")
        print(f"{name}.{split}: {len(lines)} passages")


def main():
    folder = Path(sys.argv[1])
    (folder / "base").mkdir(parents=True, exist_ok=True)
    (folder / "base" / "scripture.txt").write_text(bible("ge1:1-job42:17") + bible("pr1:1-re22:21"))
    (folder / "base" / "hackers.txt").write_text(jargon())
    write_domain(folder, "psalms", bible("ps1:1-ps150:6"))
    write_domain(folder, "satire", devil())
    write_domain(folder, "code", Path("/usr/include/sqlite3.h").read_text())
    write_domain(folder, "zones", Path("/usr/share/zoneinfo/tzdata.zi").read_text())


if __name__ == "__main__":
    main()
