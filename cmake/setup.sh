#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Installs what building graft needs and this machine lacks (Debian packages); does nothing when everything is there.
#   cmake/setup.sh          compiler, CMake, libraries, pip
#   cmake/setup.sh --check  the same and what the checks of the sources need (clang-format)
set -euo pipefail

missing=()
# need PACKAGE PROBE: the probe is a command, or a file when it starts with a slash
need() {
  case $2 in
    /*) [ -e "$2" ] || missing+=("$1") ;;
    *) command -v "$2" > /dev/null || missing+=("$1") ;;
  esac
}
need g++ g++
need make make
need cmake cmake
need libeigen3-dev /usr/include/eigen3/Eigen/Core
need nlohmann-json3-dev /usr/include/nlohmann/json.hpp
need libpcre2-dev /usr/include/pcre2.h
need libcli11-dev /usr/include/CLI/CLI.hpp
need catch2 /usr/include/catch2
need libbenchmark-dev /usr/include/benchmark/benchmark.h
need python3 python3
python3 -m pip --version > /dev/null 2>&1 || missing+=(python3-pip)
if [ "${1:-}" = --check ]; then
  need clang-format-14 clang-format-14
  need pkg-config pkg-config
fi
[ ${#missing[@]} -gt 0 ] || exit 0

echo "setup: installing ${missing[*]}"
if ! command -v apt-get > /dev/null; then
  echo "setup: this is not a Debian system; please install the counterparts of: ${missing[*]}" >&2
  exit 1
fi
as_root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo > /dev/null || { echo "setup: run as root: apt-get install ${missing[*]}" >&2; exit 1; }
  as_root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" apt-get install -y -qq --no-install-recommends ca-certificates "${missing[@]}"
