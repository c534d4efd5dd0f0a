# SPDX-License-Identifier: Apache-2.0
# fuzz_<reader>.cpp: a fuzz target per reader. Here each is linked with a driver that needs no clang: a test replays the
# seeds and a fixed number of mutations under the sanitizers. GRAFT_LIBFUZZER=ON (clang) makes libFuzzer programs instead.
option(GRAFT_LIBFUZZER "Link the fuzz targets with libFuzzer (needs clang)" OFF)

# What all of them are linked with: graft's files, kernels and banks, and the driver, under the sanitizers as well.
add_library(graft_fuzzed STATIC EXCLUDE_FROM_ALL ${PROJECT_BINARY_DIR}/files.cpp ${PROJECT_BINARY_DIR}/kernels.cpp)
target_link_libraries(graft_fuzzed PUBLIC graft::text graft_development)
target_include_directories(graft_fuzzed PUBLIC ${PROJECT_SOURCE_DIR})
target_compile_definitions(graft_fuzzed PUBLIC GRAFT_EXTERN_FILES GRAFT_EXTERN_KERNELS
                                               GRAFT_TEST_DATA="${PROJECT_SOURCE_DIR}/tests/golden/data")
if(GRAFT_LIBFUZZER)
  set(sanitizers -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all)
else()
  target_sources(graft_fuzzed PRIVATE ${PROJECT_SOURCE_DIR}/tests/fuzz/fuzz_main.cpp)
  if(NOT CMAKE_CXX_FLAGS MATCHES "-fsanitize")  # a preset's own
    set(sanitizers -fsanitize=address,undefined -fno-sanitize-recover=all)
  endif()
endif()
target_compile_options(graft_fuzzed PUBLIC -O1 -g1 ${sanitizers})
# to optimise all kernels under both sanitizers takes longer than the fuzzing, which hardly computes
set_source_files_properties(${PROJECT_BINARY_DIR}/kernels.cpp PROPERTIES COMPILE_OPTIONS "-O0;-fno-sanitize=undefined")
target_link_options(graft_fuzzed PUBLIC ${sanitizers})

# graft_add_fuzz_test(reader mutations seeds...): tests/fuzz/fuzz_<reader>.cpp
function(graft_add_fuzz_test reader mutations)
  set(target fuzz_${reader})
  add_executable(${target} EXCLUDE_FROM_ALL ${PROJECT_SOURCE_DIR}/tests/fuzz/${target}.cpp)
  target_link_libraries(${target} PRIVATE graft_fuzzed)
  set_property(GLOBAL APPEND PROPERTY graft_fuzz_targets ${target})
  if(GRAFT_LIBFUZZER)
    set(corpus ${CMAKE_CURRENT_BINARY_DIR}/corpus_${reader})  # libFuzzer adds what it finds to it
    file(MAKE_DIRECTORY ${corpus})
    foreach(seed IN LISTS ARGN)
      string(MD5 name ${seed})  # adapters' files are all called the same
      file(COPY_FILE ${seed} ${corpus}/${name})
    endforeach()
    add_test(NAME fuzz.${reader} COMMAND ${target} -max_total_time=20 ${corpus})
  else()
    add_test(NAME fuzz.${reader} COMMAND ${target} --mutations ${mutations} ${ARGN})
  endif()
  set_tests_properties(fuzz.${reader} PROPERTIES LABELS fuzz FIXTURES_REQUIRED fuzz TIMEOUT 600)
endfunction()

set(fuzz_seeds ${PROJECT_SOURCE_DIR}/tests/golden/data)
graft_add_fuzz_test(gguf 20000 ${fuzz_seeds}/tiny.gguf)
graft_add_fuzz_test(safetensors 20000 ${fuzz_seeds}/tiny.safetensors)

file(GLOB seeds ${fuzz_seeds}/models/*/config.json)
graft_add_fuzz_test(config 20000 ${seeds})
file(GLOB seeds ${fuzz_seeds}/gguf_lora/*.gguf)
graft_add_fuzz_test(gguf_lora 10000 ${seeds})
file(GLOB seeds ${fuzz_seeds}/models/llama_sums/adapter_*/* ${fuzz_seeds}/models/llama_pedro/adapter_*/*)
graft_add_fuzz_test(peft 3000 ${seeds})
file(GLOB seeds ${fuzz_seeds}/text_*/tokenizer.json)
graft_add_fuzz_test(tokenizer 1500 ${seeds})

file(READ ${fuzz_seeds}/text_chat.json chat)
string(JSON count LENGTH "${chat}" templates)
math(EXPR last "${count} - 1")
set(seeds "")
foreach(k RANGE ${last})
  string(JSON name MEMBER "${chat}" templates ${k})
  string(JSON template GET "${chat}" templates "${name}")
  set(seed ${CMAKE_CURRENT_BINARY_DIR}/chat_template_${k}.jinja)
  file(WRITE ${seed} "${template}")
  list(APPEND seeds ${seed})
endforeach()
graft_add_fuzz_test(chat_template 20000 ${seeds})

get_property(fuzz_targets GLOBAL PROPERTY graft_fuzz_targets)
graft_add_build_test(build.fuzz ${fuzz_targets})
set_tests_properties(build.fuzz PROPERTIES FIXTURES_SETUP fuzz)
