#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What adapters cost requests that do not use them, in instructions, as a table for docs/performance-models.md:

    cmake --build build --target bench_unused
    bench/unused.py [--build build] [--model MODEL.gguf] [--into docs/performance-models.md]

valgrind's callgrind counts one decode step on one thread. Instructions are those of the step alone, loading left out.
"Outside kernels" are those of graft's own functions that do not belong to a level: plans, dispatch, chunks. Level avx2,
the best that valgrind knows.
"""
import argparse
import os
import re
import subprocess
import tempfile
from pathlib import Path

from page import replace

ROOT = Path(__file__).resolve().parents[1]


def self_costs(path):
    """{function: instructions of its own} of a file that callgrind wrote."""
    names, costs, function, of_call = {}, {}, None, False
    for line in Path(path).read_text().splitlines():
        if found := re.match(r"fn=\((\d+)\)(?: (.*))?", line):
            number, name = found.groups()
            function = names.setdefault(number, name)
        elif found := re.match(r"cfn=\((\d+)\)(?: (.*))?", line):
            names.setdefault(*found.groups())
        elif line.startswith("calls="):
            of_call = True  # the next line has what the called function cost
        elif re.match(r"[+*\-\d]", line):
            if not of_call:
                costs[function] = costs.get(function, 0) + int(line.split()[1])
            of_call = False
    return costs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=Path, default=ROOT / "build")
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/models/SmolLM2-135M-Instruct.Q4_1.gguf")
    parser.add_argument("--precision", nargs="*", default=["exact", "native"])
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()

    def count(case, rows, precision):
        """(instructions, those outside kernels) of a step"""
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "callgrind.out"
            subprocess.run(["valgrind", "--tool=callgrind", "--toggle-collect=counted_step", f"--callgrind-out-file={out}",
                            arguments.build / "bench/unused", arguments.model, "--count", case, str(rows), precision],
                           check=True, env=dict(os.environ, GRAFT_ISA="avx2"), stderr=subprocess.DEVNULL)
            costs = self_costs(out)
        own = [(name, cost) for name, cost in costs.items() if "graft" in name]
        return sum(costs.values()), sum(cost for name, cost in own if not re.search("cpu(::|4)avx2", name))

    lines = ["| decode step | instructions | of these outside kernels | over the model without a list, % |",
             "| --- | ---: | ---: | ---: |"]
    for precision in arguments.precision:
        without = {}
        used = 0
        for rows, case in ((1, "without a list"), (1, "compiled in"), (1, "loaded"),
                           (16, "without a list"), (16, "all use them"),
                           (32, "without a list"), (32, "compiled in"), (32, "loaded"), (32, "half use them")):
            total, outside = count(case, rows, precision)
            if case == "without a list":
                without[rows] = total
            over = total - without[rows]
            label = f"{rows} request{'s' * (rows > 1)}, {precision}, {case}"
            found = [f"| {label} | {total:,} | {outside:,} | {100 * over / without[rows]:+.4f} |"]
            if case == "all use them":
                used = over
            if case == "half use them":
                share = 100 * (over - used) / without[rows]
                found.append(f"| of that, what the 16 requests without pay | {over - used:,} | | {share:+.4f} |")
            print(*found, sep="\n", flush=True)
            lines += found
    if arguments.into:
        replace(arguments.into, "unused", lines)


if __name__ == "__main__":
    main()
