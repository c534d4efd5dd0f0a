# SPDX-License-Identifier: Apache-2.0
# The tests of the CUDA backend are compiled up to three times. Everywhere: by the C++ compiler, against an emulation
# whose headers stand before the Toolkit's, and run (test_cuda). Where nvcc is: by nvcc, so that what is tested is what a
# GPU would run. With GRAFT_WITH_CUDA: linked, to run on a GPU (test_cuda_device; skipped where there is none).
target_include_directories(test_cuda BEFORE PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/cuda/emulation)
target_compile_definitions(test_cuda PRIVATE GRAFT_CUDA_EMULATION)
target_compile_options(test_cuda PRIVATE -Wno-unknown-pragmas)  # #pragma unroll
# many templates and small models: what optimising costs here is more than what it saves
target_compile_options(test_cuda PRIVATE $<$<CONFIG:Release>:-O1>)
# whole models are compiled once for all files that need them, which takes half the time
set(whole_models cuda/backbone.cpp cuda/decode_graphs.cpp cuda/golden.cpp cuda/train.cpp)
set_source_files_properties(${whole_models} PROPERTIES UNITY_GROUP whole_models)
set_target_properties(test_cuda PROPERTIES UNITY_BUILD ON UNITY_BUILD_MODE GROUP)
# products and sums are contracted, as nvcc does, so that what must have the same bits is written so that it has
include(CheckCXXSourceRuns)
set(CMAKE_REQUIRED_FLAGS -mfma)
check_cxx_source_runs("int main() { return __builtin_cpu_supports(\"fma\") ? 0 : 1; }" GRAFT_HAS_FMA)
unset(CMAKE_REQUIRED_FLAGS)
if(GRAFT_HAS_FMA)
  target_compile_options(test_cuda PRIVATE -mfma -ffp-contract=fast)
endif()

# graft_emulated(<name> <source>): a program of a .cu file that runs in the emulation.
function(graft_emulated name source)
  set(unit ${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.cpp)
  file(CONFIGURE OUTPUT ${unit} CONTENT "#include <${source}>\n")
  add_executable(${name} EXCLUDE_FROM_ALL ${unit})
  target_link_libraries(${name} PRIVATE graft::text graft::kernels graft_development)
  target_include_directories(${name} BEFORE PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/cuda/emulation ${PROJECT_SOURCE_DIR})
  target_compile_definitions(${name} PRIVATE GRAFT_CUDA_EMULATION)
  target_compile_options(${name} PRIVATE -Wno-unknown-pragmas $<$<CONFIG:Release>:-O1>)
endfunction()

# examples/NN_name.cu are tests
file(GLOB cuda_examples CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/examples/*.cu)
foreach(example IN LISTS cuda_examples)
  cmake_path(GET example STEM stem)
  set(name ${stem}_emulated)
  graft_emulated(${name} examples/${stem}.cu)
  set_target_properties(${name} PROPERTIES EXCLUDE_FROM_ALL OFF)
  graft_add_build_test(build.${name} ${name})
  set_tests_properties(build.${name} PROPERTIES FIXTURES_SETUP ${name})
  add_test(NAME example.${stem}.emulated
           COMMAND ${CMAKE_COMMAND} -DPROGRAM=$<TARGET_FILE:${name}>
                   -DEXPECTED=${PROJECT_SOURCE_DIR}/examples/${stem}.expected
                   -P ${PROJECT_SOURCE_DIR}/cmake/check_output.cmake)
  set_tests_properties(example.${stem}.emulated PROPERTIES LABELS "example;cuda" FIXTURES_REQUIRED ${name})
endforeach()
# and bench/name.cu can be tried before it meets a GPU: cmake --build build --target name_emulated, name_emulated --small
file(GLOB cuda_benchmarks CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/bench/*.cu)
foreach(benchmark IN LISTS cuda_benchmarks)
  cmake_path(GET benchmark STEM stem)
  graft_emulated(${stem}_emulated bench/${stem}.cu)
endforeach()

file(GLOB device_tests RELATIVE ${CMAKE_CURRENT_SOURCE_DIR} CONFIGURE_DEPENDS cuda/*.cpp)
set(device_sources ${CMAKE_CURRENT_BINARY_DIR}/cuda/whole_models.cu)
list(TRANSFORM whole_models REPLACE "(.+)" "#include <tests/\\1>\n" OUTPUT_VARIABLE includes)
list(JOIN includes "" includes)
file(CONFIGURE OUTPUT ${device_sources} CONTENT "${includes}")
foreach(test IN LISTS device_tests)
  if(NOT test IN_LIST whole_models)
    cmake_path(GET test STEM stem)
    set(source ${CMAKE_CURRENT_BINARY_DIR}/cuda/${stem}.cu)
    file(CONFIGURE OUTPUT ${source} CONTENT "#include <tests/${test}>\n")
    list(APPEND device_sources ${source})
  endif()
endforeach()

# graft_nvcc_objects(<list> <sources>): one architecture, warnings are errors, no GPU needed.
find_program(GRAFT_NVCC nvcc HINTS /usr/local/cuda/bin)
if(GRAFT_NVCC AND NOT DEFINED GRAFT_NVCC_FAST)  # these objects are compiled, not run: twice as fast from CUDA 12.9 on
  execute_process(COMMAND ${GRAFT_NVCC} --help OUTPUT_VARIABLE help)
  string(FIND "${help}" "--Ofast-compile" found)
  set(GRAFT_NVCC_FAST $<$<NOT:$<EQUAL:${found},-1>>:-Ofc=max> CACHE INTERNAL "")
endif()
function(graft_nvcc_objects list)
  # the CPU's kernels and files are compiled by the C++ compiler, once, as in test_cuda_device
  set(definitions "$<TARGET_PROPERTY:graft_kernels,INTERFACE_COMPILE_DEFINITIONS>"
                  "$<TARGET_PROPERTY:graft_files,INTERFACE_COMPILE_DEFINITIONS>")
  set(system_flags "")
  foreach(target IN ITEMS Eigen3::Eigen nlohmann_json::nlohmann_json PCRE2::8BIT Catch2::Catch2)
    set(dirs "$<TARGET_PROPERTY:${target},INTERFACE_INCLUDE_DIRECTORIES>")
    set(dirs "$<FILTER:${dirs},EXCLUDE,^/usr/include$>")  # its place in the search order matters to #include_next
    list(APPEND system_flags "$<$<BOOL:${dirs}>:-isystem;$<JOIN:${dirs},;-isystem;>>")
  endforeach()
  set(objects "")
  foreach(source IN LISTS ARGN)
    add_custom_command(
      OUTPUT ${source}.o
      COMMAND ${GRAFT_NVCC} -std=c++20 -arch=sm_90 --expt-relaxed-constexpr -O0 -Werror all-warnings
              -Xcompiler=-Wall,-Wextra -I${PROJECT_SOURCE_DIR}/include -I${PROJECT_SOURCE_DIR} "${system_flags}"
              ${GRAFT_NVCC_FAST} "-D$<JOIN:${definitions},;-D>" "-DGRAFT_SOURCE_DIR=\"${PROJECT_SOURCE_DIR}\""
              "-DGRAFT_TEST_DATA=\"${PROJECT_SOURCE_DIR}/tests/golden/data\"" -MD -MF ${source}.d -c ${source} -o ${source}.o
      DEPENDS ${source}
      DEPFILE ${source}.d
      COMMAND_EXPAND_LISTS VERBATIM
      COMMENT "nvcc ${source}")
    list(APPEND objects ${source}.o)
  endforeach()
  set(${list} ${objects} PARENT_SCOPE)
endfunction()

if(GRAFT_WITH_CUDA)
  string(REPLACE "-O2" "-O1" CMAKE_CUDA_FLAGS_RELEASE "${CMAKE_CUDA_FLAGS_RELEASE}")  # the host's part, as above
  add_executable(test_cuda_device ${device_sources} main.cpp)
  target_link_libraries(test_cuda_device PRIVATE graft::cuda graft::files graft::kernels Catch2::Catch2
                                                 graft_development)
  target_include_directories(test_cuda_device PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_definitions(test_cuda_device PRIVATE GRAFT_TEST_ON_GPU GRAFT_SOURCE_DIR="${PROJECT_SOURCE_DIR}"
                                                      GRAFT_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/golden/data")
  graft_add_build_test(build.cuda_device test_cuda_device)
  set_tests_properties(build.cuda_device PROPERTIES FIXTURES_SETUP cuda_device)
  foreach(test IN LISTS device_tests)
    cmake_path(GET test STEM stem)
    add_test(NAME cuda_device.${stem} COMMAND test_cuda_device --filenames-as-tags "[#${stem}]")
    set_tests_properties(cuda_device.${stem} PROPERTIES LABELS cuda_device FIXTURES_REQUIRED cuda_device
                                                        SKIP_RETURN_CODE 77 TIMEOUT 1200 RESOURCE_LOCK gpu)
  endforeach()
elseif(GRAFT_NVCC)
  graft_nvcc_objects(objects ${device_sources})
  add_custom_target(graft_nvcc_tests DEPENDS ${objects})
  graft_add_build_test(cuda.nvcc graft_nvcc_tests)
endif()
