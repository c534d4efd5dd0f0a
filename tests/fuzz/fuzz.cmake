# SPDX-License-Identifier: Apache-2.0
# fuzz_<reader>.cpp: a fuzz target per reader. Here each is linked with a driver that needs no clang: a test replays the
# seeds and a fixed number of mutations under the sanitizers. GRAFT_LIBFUZZER=ON (clang) makes libFuzzer programs instead.
option(GRAFT_LIBFUZZER "Link the fuzz targets with libFuzzer (needs clang)" OFF)

# graft_add_fuzz_test(reader seeds...): tests/fuzz/fuzz_<reader>.cpp
function(graft_add_fuzz_test reader)
  set(target fuzz_${reader})
  add_executable(${target} EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tests/fuzz/${target}.cpp)
  target_link_libraries(${target} PRIVATE graft::text graft_development)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR})
  if(GRAFT_LIBFUZZER)
    set(sanitizers -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all)
  else()
    target_sources(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests/fuzz/fuzz_main.cpp)
    if(NOT CMAKE_CXX_FLAGS MATCHES "-fsanitize")  # a preset's own
      set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all)
    endif()
  endif()
  target_compile_options(${target} PRIVATE -O1 -g ${sanitizers})
  target_link_options(${target} PRIVATE ${sanitizers})
  graft_add_build_test(build.${target} ${target})
  set_tests_properties(build.${target} PROPERTIES FIXTURES_SETUP ${target})
  if(GRAFT_LIBFUZZER)
    set(corpus ${CMAKE_CURRENT_BINARY_DIR}/corpus_${reader})  # libFuzzer adds what it finds to it
    file(COPY ${ARGN} DESTINATION ${corpus})
    add_test(NAME fuzz.${reader} COMMAND ${target} -max_total_time=20 ${corpus})
  else()
    add_test(NAME fuzz.${reader} COMMAND ${target} --mutations 20000 ${ARGN})
  endif()
  set_tests_properties(fuzz.${reader} PROPERTIES LABELS fuzz FIXTURES_REQUIRED ${target} TIMEOUT 600)
endfunction()

set(fuzz_seeds ${PROJECT_SOURCE_DIR}/tests/golden/data)
graft_add_fuzz_test(gguf ${fuzz_seeds}/tiny.gguf)
graft_add_fuzz_test(safetensors ${fuzz_seeds}/tiny.safetensors)
