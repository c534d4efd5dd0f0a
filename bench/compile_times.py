#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How long translation units take to compile, as a table for docs/compile-times.md:

    bench/compile_times.py [--compiler g++] [--runs 3] [--only PART_OF_A_NAME] [--into docs/compile-times.md]

Processor seconds of the compiler with -O2, the median of the runs. A header alone stands for what including it costs.
"""
import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from page import replace

ROOT = Path(__file__).resolve().parents[1]
MACROS = ["-DEIGEN_NO_CUDA", "-DEIGEN_DONT_PARALLELIZE", "-DEIGEN_MAX_ALIGN_BYTES=64"]  # what graft::graft defines


def include(*headers):
    return "".join(f"#include <{header}>\n" for header in headers)


def units():
    """(name, source, further options)"""
    quick_start = (ROOT / "examples/00_quick_start.cpp").read_text()
    embedded = (ROOT / "examples/03_embed_cpu.cpp").read_text()
    extern = ["-DGRAFT_EXTERN_KERNELS"]
    files = [*extern, "-DGRAFT_EXTERN_FILES"]
    yield "`<Eigen/Dense>` alone", include("Eigen/Dense"), []
    yield "`<nlohmann/json.hpp>` alone", include("nlohmann/json.hpp"), []
    for header in ("adapter/policy.hpp", "adapter/lora.hpp", "adapter/road.hpp", "adapter/ia3.hpp", "adapter/pedro.hpp"):
        yield f"`graft/{header}` alone", include(f"graft/{header}"), []
    yield "`graft/graft.hpp` alone", include("graft/graft.hpp"), []
    yield "[03_embed_cpu.cpp](../examples/03_embed_cpu.cpp), in an engine of one's own", embedded, []
    yield "the same, linked with `graft::kernels`", embedded, extern
    yield "[00_quick_start.cpp](../examples/00_quick_start.cpp): model, files, tokenizer", quick_start, []
    yield "the same, linked with `graft::kernels`", quick_start, extern
    yield "the same, linked with `graft::kernels` and `graft::files`", quick_start, files
    yield "`graft::kernels` itself", include("graft/graft.hpp"), [*extern, "-DGRAFT_DEFINE_KERNELS"]
    readers = ("io/model_files.hpp", "io/peft.hpp", "io/safetensors.hpp", "text/model_tokenizer.hpp", "text/tokenizer.hpp")
    yield "`graft::files` itself", include(*(f"graft/{reader}" for reader in readers)), [*files, "-DGRAFT_DEFINE_FILES"]


def seconds(command):
    before = os.times()
    done = subprocess.run(command, capture_output=True, text=True)
    after = os.times()
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return after.children_user + after.children_system - before.children_user - before.children_system


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--eigen", default="/usr/include/eigen3")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="measure the rows alone whose names hold this")
    parser.add_argument("--into", type=Path)
    arguments = parser.parse_args()
    options = ["-std=c++20", "-O2", f"-I{ROOT / 'include'}", f"-I{ROOT}", "-isystem", arguments.eigen, *MACROS]
    wanted = [unit for unit in units() if arguments.only in unit[0]]
    times = [(name, []) for name, _, _ in wanted]
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.runs):  # runs side by side, so that a slow minute of the machine hits all alike
            for (_, source, more), (_, found) in zip(wanted, times):
                (Path(folder) / "unit.cpp").write_text(source)
                found.append(seconds([arguments.compiler, *options, *more, "-c", f"{folder}/unit.cpp", "-o", f"{folder}/unit.o"]))
    version = subprocess.run([arguments.compiler, "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
    lines = [f"| {arguments.compiler} {version} -O2 | processor seconds |", "| --- | ---: |"]
    lines += [f"| {name} | {statistics.median(found):.1f} |" for name, found in times]
    text = "\n".join(lines)
    if arguments.into:
        replace(arguments.into, "compile times", [text])
    else:
        print(text)


if __name__ == "__main__":
    main()
