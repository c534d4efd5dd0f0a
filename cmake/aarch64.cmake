# SPDX-License-Identifier: Apache-2.0
# Toolchain of the preset aarch64: compiles for aarch64 on another machine, where qemu runs the tests. Debian packages:
# g++-aarch64-linux-gnu qemu-user-static and, after dpkg --add-architecture arm64, libpcre2-dev:arm64, with which comes
# the C library that the tests meet when they run.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_C_COMPILER aarch64-linux-gnu-gcc)  # of dependencies that are fetched
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_CROSSCOMPILING_EMULATOR qemu-aarch64-static)
# The C++ library, the compiler's own, goes into the programs: found by qemu's -L, it would bring the compiler's loader
# with it, which hangs with the package's C library where a thread begins.
set(CMAKE_EXE_LINKER_FLAGS_INIT "-static-libstdc++ -static-libgcc")
