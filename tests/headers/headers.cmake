# SPDX-License-Identifier: Apache-2.0
# Every header stands alone: compiled by itself, included twice, among macros that other people's headers define.
file(GLOB_RECURSE headers RELATIVE ${PROJECT_SOURCE_DIR}/include CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/include/*.hpp)
list(FILTER headers EXCLUDE REGEX "^graft/backend/cuda/")
set(probe_dir ${CMAKE_CURRENT_BINARY_DIR}/headers)
# I is <complex.h>'s, small is rpcndr.h's, B0 is <termios.h>'s; each value is a syntax error wherever it is used.
set(hostile "#define I graft used the macro I\n#define small graft used the macro small\n#define B0 graft used the macro B0\n")

set(probes "")
set(core_probes ${probe_dir}/graft_graft_hpp.cpp)  # all that need no Eigen, core to model (house.umbrella)
foreach(header IN LISTS headers)
  string(MAKE_C_IDENTIFIER ${header} id)
  file(CONFIGURE OUTPUT ${probe_dir}/${id}.cpp
       CONTENT "${hostile}#include <${header}>\n#include <${header}>\n")
  list(APPEND probes ${probe_dir}/${id}.cpp)
  if(header MATCHES "^graft/backend/cpu/(eigen|decompose)")
    list(APPEND core_probes ${probe_dir}/${id}.cpp)
  endif()
endforeach()

add_library(graft_header_probes OBJECT EXCLUDE_FROM_ALL ${probes})
target_link_libraries(graft_header_probes PRIVATE graft::text graft_development)
target_compile_options(graft_header_probes PRIVATE -O0 -g0)
graft_add_build_test(headers.alone graft_header_probes)

# What a host without exceptions and run-time types includes.
add_library(graft_no_exceptions_probes OBJECT EXCLUDE_FROM_ALL ${core_probes})
target_link_libraries(graft_no_exceptions_probes PRIVATE graft::graft graft_development)
target_compile_options(graft_no_exceptions_probes PRIVATE -O0 -g0 -fno-exceptions -fno-rtti)
graft_add_build_test(headers.no_exceptions graft_no_exceptions_probes)

# What a host includes that looks for mistakes: a sanitizer, and containers that check themselves.
add_library(graft_checked_probes OBJECT EXCLUDE_FROM_ALL ${probe_dir}/graft_graft_hpp.cpp)
target_link_libraries(graft_checked_probes PRIVATE graft::graft graft_development)
target_compile_options(graft_checked_probes PRIVATE -O0 -g0 -D_GLIBCXX_DEBUG -fsanitize=undefined)
graft_add_build_test(headers.checked graft_checked_probes)

# Each of the CUDA backend's, in the tests' emulation.
file(GLOB_RECURSE cuda_headers RELATIVE ${PROJECT_SOURCE_DIR}/include CONFIGURE_DEPENDS
     ${PROJECT_SOURCE_DIR}/include/graft/backend/cuda/*)
set(cuda_probes "")
foreach(header IN LISTS cuda_headers)
  string(MAKE_C_IDENTIFIER ${header} id)
  file(CONFIGURE OUTPUT ${probe_dir}/${id}.cpp CONTENT "#include <${header}>\n#include <${header}>\n")
  list(APPEND cuda_probes ${probe_dir}/${id}.cpp)
endforeach()
add_library(graft_cuda_header_probes OBJECT EXCLUDE_FROM_ALL ${cuda_probes})
target_link_libraries(graft_cuda_header_probes PRIVATE graft::graft graft::kernels graft_development)
target_include_directories(graft_cuda_header_probes BEFORE PRIVATE ${PROJECT_SOURCE_DIR}/tests/cuda/emulation
                                                                   ${PROJECT_SOURCE_DIR})
target_compile_definitions(graft_cuda_header_probes PRIVATE GRAFT_CUDA_EMULATION)
target_compile_options(graft_cuda_header_probes PRIVATE -O0 -g0 -Wno-unknown-pragmas)
graft_add_build_test(headers.cuda graft_cuda_header_probes)

# All of them through nvcc, in few probes, because nvcc takes seconds to read Eigen. No GPU is needed.
if(GRAFT_NVCC)
  set(nvcc_probes "")
  foreach(folders IN ITEMS "core|backend|adapter|layer|arch|model" "arithmetic|io|text|train|testing")
    set(some ${headers})
    list(FILTER some INCLUDE REGEX "^graft/(${folders})/")
    list(FILTER some EXCLUDE REGEX "counting_allocator")  # replaces malloc, which nvcc declares for the device too
    list(TRANSFORM some REPLACE "(.+)" "#include <\\1>")
    list(JOIN some "\n" some)
    string(REPLACE "|" "_" id "${folders}")
    file(CONFIGURE OUTPUT ${probe_dir}/${id}.cu CONTENT "${some}\n")
    list(APPEND nvcc_probes ${probe_dir}/${id}.cu)
  endforeach()
  list(TRANSFORM cuda_headers REPLACE "(.+)" "#include <\\1>" OUTPUT_VARIABLE all_cuda)
  list(JOIN all_cuda "\n" all_cuda)
  file(CONFIGURE OUTPUT ${probe_dir}/cuda.cu CONTENT "${all_cuda}\n")
  list(APPEND nvcc_probes ${probe_dir}/cuda.cu)

  graft_nvcc_objects(objects ${nvcc_probes})
  add_custom_target(graft_nvcc_probes DEPENDS ${objects})
  graft_add_build_test(headers.nvcc graft_nvcc_probes)
endif()
