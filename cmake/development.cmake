# SPDX-License-Identifier: Apache-2.0
# Settings of our own programs only; nothing here reaches a user of the library.
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "Debug, Release, RelWithDebInfo or MinSizeRel" FORCE)
endif()
if(CMAKE_CXX_FLAGS_RELEASE STREQUAL "-O3 -DNDEBUG")  # CMake's default; docs/performance.md measures with -O2
  set(CMAKE_CXX_FLAGS_RELEASE "-O2 -DNDEBUG")
endif()
if(CMAKE_CUDA_FLAGS_RELEASE STREQUAL "-O3 -DNDEBUG")  # of code for the host; kernels are always optimised fully
  set(CMAKE_CUDA_FLAGS_RELEASE "-O2 -DNDEBUG")
endif()
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_CXX_EXTENSIONS OFF)

# graft_development: what tests, examples and benchmarks are compiled with.
add_library(graft_development INTERFACE)
target_compile_options(graft_development INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wshadow>)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # false alarms inside std::string's own operator+ (GCC bug 105651) and inside AVX-512's intrinsics, as Eigen's
  # decompositions use them (GCC bug 105593)
  target_compile_options(graft_development INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-restrict -Wno-uninitialized
                                                     -Wno-maybe-uninitialized>)
endif()
if(GRAFT_NATIVE)
  target_compile_options(graft_development INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-march=native>
                                                     $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-march=native>)
endif()
