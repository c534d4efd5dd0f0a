# SPDX-License-Identifier: Apache-2.0
"""What every side of run.py answers: a line of JSON in, a line of JSON out. Calls, with the fields beside "do":

open      model, adapters {name: file or folder}, precision,       versions and settings
          packed: whether graft packs its weights
tokens    text                                                     tokens
generate  prompts [[token]], use [name or null], new               prefill, decode: seconds; tokens [[token]]
load      as open, and text                                        seconds from opening to the first token; memory
train     sequences [[token]], method, recompute                   sets a training up
step                                                               seconds, loss, memory of one optimiser step
"""
import json
import sys


def memory():
    """Megabytes of this process: resident now, of that mapped files, and the most there ever was."""
    with open("/proc/self/status", encoding="utf-8") as file:
        status = dict(line.split(":", 1) for line in file)
    names = {"resident_mb": "VmRSS", "of_files_mb": "RssFile", "peak_mb": "VmHWM"}
    return {name: int(status[key].split()[0]) / 1024 for name, key in names.items()}


def by_adapter(use):
    """{name: which requests use it}"""
    groups = {}
    for request, name in enumerate(use):
        groups.setdefault(name, []).append(request)
    return groups


def in_order(groups, tokens):
    """The tokens of every request, from those of each group's."""
    made = {request: row for requests, rows in zip(groups.values(), tokens) for request, row in zip(requests, rows)}
    return [made[request] for request in sorted(made)]


def serve(worker):
    """Calls worker's methods until standard input ends. What libraries print goes to standard error."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        call = json.loads(line)
        answers.write(json.dumps(getattr(worker, call["do"])(call)) + "\n")
        answers.flush()
