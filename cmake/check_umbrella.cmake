# SPDX-License-Identifier: Apache-2.0
# graft.hpp lists every header from core to model but those of arithmetic:
#   cmake -DROOT=include/graft -P cmake/check_umbrella.cmake
# With -DWRITE=ON in front of -P the file is brought up to date.
cmake_minimum_required(VERSION 3.25)
cmake_path(ABSOLUTE_PATH ROOT NORMALIZE)

set(expected
"// SPDX-License-Identifier: Apache-2.0
// Core to model, which need nothing but Eigen. Module arithmetic, files, text and the training loop have headers of
// their own.
#pragma once

#include <graft/config.hpp>
#include <graft/version.hpp>
")
foreach(folder IN ITEMS core backend adapter layer arch model)
  file(GLOB_RECURSE headers RELATIVE ${ROOT} ${ROOT}/${folder}/*.hpp)
  list(FILTER headers EXCLUDE REGEX "^backend/(cuda/|cpu/(eigen|decompose))")  # nvcc and Eigen are asked for by name
  list(SORT headers)
  if(headers)
    string(APPEND expected "\n")
  endif()
  foreach(header IN LISTS headers)
    string(APPEND expected "#include <graft/${header}>\n")
  endforeach()
endforeach()

if(WRITE)
  file(WRITE ${ROOT}/graft.hpp "${expected}")
endif()
file(READ ${ROOT}/graft.hpp actual)
if(NOT actual STREQUAL expected)
  message(FATAL_ERROR "graft.hpp must list the headers from core to model but arithmetic, folder by folder. Write it\n"
                      "anew with  cmake -DROOT=include/graft -DWRITE=ON -P cmake/check_umbrella.cmake")
endif()
