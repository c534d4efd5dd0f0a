# SPDX-License-Identifier: Apache-2.0
# Finds what graft stands on. What is not installed is fetched at a pinned version (GRAFT_FETCH_DEPENDENCIES).
include(FetchContent)
list(APPEND CMAKE_MODULE_PATH ${CMAKE_CURRENT_LIST_DIR})
set(graft_fetched "")

# graft_dependency(<package> TARGET <target> DEBIAN <name> GIT <url> TAG <tag> [VERSION <least>]
#                  [HEADERS <folder> | BUILDS <target>])
# HEADERS: the package is a folder of headers; its own build is not run. BUILDS: what TARGET is called in its own build.
macro(graft_dependency package)
  cmake_parse_arguments(need "" "TARGET;DEBIAN;GIT;TAG;VERSION;HEADERS;BUILDS" "" ${ARGN})
  if(NOT TARGET ${need_TARGET})
    find_package(${package} ${need_VERSION} QUIET)
  endif()
  if(NOT TARGET ${need_TARGET})
    if(NOT GRAFT_FETCH_DEPENDENCIES)
      message(FATAL_ERROR "graft: ${package} ${need_VERSION} was not found. Install it (Debian: ${need_DEBIAN}), "
                          "set CMAKE_PREFIX_PATH, or turn GRAFT_FETCH_DEPENDENCIES on.")
    endif()
    message(STATUS "graft: ${package} was not found; fetching ${need_TAG} (Debian package: ${need_DEBIAN})")
    list(APPEND graft_fetched ${package})
    if(DEFINED need_HEADERS)
      FetchContent_Declare(${package} GIT_REPOSITORY ${need_GIT} GIT_TAG ${need_TAG} GIT_SHALLOW ON
                           SOURCE_SUBDIR only-the-headers)  # no such folder: nothing of its build runs
      FetchContent_MakeAvailable(${package})
      FetchContent_GetProperties(${package} SOURCE_DIR need_SOURCE_DIR)
      add_library(${need_TARGET} INTERFACE IMPORTED)  # imported: its headers count as system headers
      target_include_directories(${need_TARGET} INTERFACE ${need_SOURCE_DIR}/${need_HEADERS})
    else()
      FetchContent_Declare(${package} GIT_REPOSITORY ${need_GIT} GIT_TAG ${need_TAG} GIT_SHALLOW ON SYSTEM)
      FetchContent_MakeAvailable(${package})
      if(need_BUILDS)
        add_library(${need_TARGET} ALIAS ${need_BUILDS})
      endif()
    endif()
  endif()
  if(NOT TARGET ${need_TARGET})
    message(FATAL_ERROR "graft: ${package} does not provide ${need_TARGET}")
  endif()
endmacro()

find_package(Threads REQUIRED)
graft_dependency(Eigen3 VERSION 3.4 TARGET Eigen3::Eigen DEBIAN libeigen3-dev HEADERS .
                 GIT https://gitlab.com/libeigen/eigen.git TAG 3.4.0)
if(GRAFT_IO)
  graft_dependency(nlohmann_json VERSION 3.10 TARGET nlohmann_json::nlohmann_json DEBIAN nlohmann-json3-dev
                   HEADERS include GIT https://github.com/nlohmann/json.git TAG v3.11.3)
endif()
if(GRAFT_TEXT)
  set(PCRE2_BUILD_TESTS OFF)
  set(PCRE2_BUILD_PCRE2GREP OFF)
  graft_dependency(PCRE2 TARGET PCRE2::8BIT DEBIAN libpcre2-dev BUILDS pcre2-8-static
                   GIT https://github.com/PCRE2Project/pcre2.git TAG pcre2-10.47)
endif()
if(GRAFT_WITH_CUDA)
  find_package(CUDAToolkit REQUIRED)
endif()
if(GRAFT_BUILD_TESTS)
  graft_dependency(Catch2 TARGET Catch2::Catch2 DEBIAN catch2
                   GIT https://github.com/catchorg/Catch2.git TAG v3.7.1)
endif()
if(GRAFT_BUILD_EXAMPLES)
  graft_dependency(CLI11 TARGET CLI11::CLI11 DEBIAN libcli11-dev HEADERS include
                   GIT https://github.com/CLIUtils/CLI11.git TAG v2.4.2)
endif()
if(GRAFT_BUILD_BENCH)
  set(BENCHMARK_ENABLE_TESTING OFF)
  graft_dependency(benchmark TARGET benchmark::benchmark DEBIAN libbenchmark-dev
                   GIT https://github.com/google/benchmark.git TAG v1.9.1)
endif()
