# SPDX-License-Identifier: Apache-2.0
# The command's contract: exit status 0, 2 for bad usage, 1 for any other error with one line on standard error that
# names the file; results on standard output.
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/common/expect.cmake)

expect(2 "" "subcommand")
expect(2 "" "subcommand" nonsense)
expect(2 "" "--model is required" logits --requests r --out o)
expect(0 "graft logits|Usage" "^$" logits --help)
expect(1 "^$" "no_such_file: does not exist" info ${WORK_DIR}/no_such_file)

file(GLOB cases ${models}/*)
foreach(case IN LISTS cases)
  expect(0 "kind +model" "^$" info ${case})
  file(GLOB adapters ${case}/adapter_*)
  foreach(adapter IN LISTS adapters)
    expect(0 "kind +adapter.*parameters" "" info ${adapter} --model ${case})
    expect(0 "\"kind\":\"adapter\"" "" info ${adapter} --json)
  endforeach()
endforeach()

set(case ${models}/llama_mixed_batch)
file(GLOB adapters ${case}/adapter_*)
set(uses "")
foreach(adapter IN LISTS adapters)
  string(REGEX REPLACE ".*/adapter_" "" name ${adapter})
  list(APPEND uses --adapter ${name}=${adapter})
endforeach()
expect(0 "requests" "^$" logits --model ${case} ${uses} --requests ${case}/requests.jsonl --out ${WORK_DIR}/out.safetensors)
expect(0 "\"shape\"" "^$" info ${WORK_DIR}/out.safetensors)
file(SHA256 ${WORK_DIR}/out.safetensors exact)
foreach(option IN ITEMS adapter kv)
  foreach(storage IN ITEMS f32 bf16)
    expect(0 "requests" "^$" logits --model ${case} ${uses} --${option}-storage ${storage}
           --requests ${case}/requests.jsonl --out ${WORK_DIR}/out.safetensors)
    file(SHA256 ${WORK_DIR}/out.safetensors ${storage})
  endforeach()
  if(NOT f32 STREQUAL exact OR bf16 STREQUAL exact)
    message(SEND_ERROR "--${option}-storage should be f32 unless the command asks for bf16")
  endif()
  expect(2 "" "--${option}-storage" logits --model ${case} --${option}-storage f16 --requests r --out o)
  expect(2 "" "--${option}-storage" train --model ${case} --method lora --data d --out o --${option}-storage f32)
endforeach()
expect(2 "" "--weight-storage" logits --model ${case} --weight-storage f16 --requests r --out o)
foreach(storage IN ITEMS file compact)
  expect(0 "requests" "^$" logits --model ${case} ${uses} --precision native --weight-storage ${storage}
         --requests ${case}/requests.jsonl --out ${WORK_DIR}/out.safetensors)
  file(SHA256 ${WORK_DIR}/out.safetensors ${storage})
endforeach()
if(NOT file STREQUAL compact)
  message(SEND_ERROR "compact weights should give the logits of the weights in the file")
endif()
list(GET adapters 0 adapter)
expect(2 "" "ends in a weight.*with --use a=0.5" logits --model ${case} --adapter a=${adapter}=0.5
       --requests ${case}/requests.jsonl --out o)
expect(1 "^$" "no adapter is called" logits --model ${case} --requests ${case}/requests.jsonl --out ${WORK_DIR}/o)
expect(2 "" "given twice" logits --model ${case} ${uses} ${uses} --requests ${case}/requests.jsonl --out ${WORK_DIR}/o)

file(WRITE ${WORK_DIR}/bad.jsonl "{\"tokens\":[1]}\n{\"tokens\":[1000000]}\n")
expect(1 "^$" "token 1000000 of input 1" logits --model ${case} --requests ${WORK_DIR}/bad.jsonl --out ${WORK_DIR}/o)
file(WRITE ${WORK_DIR}/bad.jsonl "\n{\"tokens\":[1]}\n{\"tokens\":\n")
expect(1 "^$" "bad.jsonl:3" logits --model ${case} --requests ${WORK_DIR}/bad.jsonl --out ${WORK_DIR}/o)
file(WRITE ${WORK_DIR}/bad.jsonl "{\"tokens\":[1], \"adaptors\":[]}\n")
expect(1 "^$" "unknown key \"adaptors\"" logits --model ${case} --requests ${WORK_DIR}/bad.jsonl --out ${WORK_DIR}/o)
file(WRITE ${WORK_DIR}/bad.jsonl "{\"tokens\":[1], \"adapters\":[{\"name\":\"a\", \"wieght\":0.5}]}\n")
expect(1 "^$" "bad.jsonl:1: unknown key \"wieght\"" logits --model ${case} --requests ${WORK_DIR}/bad.jsonl
       --out ${WORK_DIR}/o)
file(WRITE ${WORK_DIR}/bad.jsonl "{\"tokens\":[1], \"adapters\":[\"nobody\"]}\n")
expect(1 "^$" "bad.jsonl: no adapter is called nobody" logits --model ${case} --requests ${WORK_DIR}/bad.jsonl
       --out ${WORK_DIR}/o)
expect(1 "^$" "cannot be opened" logits --model ${case} --requests ${WORK_DIR}/none.jsonl --out ${WORK_DIR}/o)
if(EXISTS ${WORK_DIR}/o)
  message(SEND_ERROR "a failed call left a file behind")
endif()
expect(2 "" "--prompt or --requests" generate --model ${case})
expect(2 "" "--prompt or --requests" generate --model ${case} --prompt x --requests ${case}/requests.jsonl)
expect(2 "" "--use is for --prompt" generate --model ${case} --use a --requests ${case}/requests.jsonl)
foreach(wrong IN ITEMS "--temperature;-1" "--temperature;nan" "--top-k;-1" "--top-p;0" "--min-p;1.5" "--seed;-1"
                       "--repeat-penalty;inf")
  expect(2 "" "" generate --model ${case} --prompt x ${wrong})
endforeach()
expect(2 "" "--seed" train --model ${case} --method lora --data d --out o --seed -1)

# results that cannot be written are no success
if(EXISTS /dev/full)
  foreach(call IN ITEMS "info;${case}" "info;${case};--json" "--help" "--version")
    execute_process(COMMAND ${GRAFT} ${call} OUTPUT_FILE /dev/full RESULT_VARIABLE result ERROR_VARIABLE errors)
    if(NOT result EQUAL 1 OR NOT errors MATCHES "^graft: standard output: cannot be written: [^\n]+\n$")
      message(SEND_ERROR "graft ${call} on a full disk ended with ${result}: ${errors}")
    endif()
  endforeach()
endif()

# GPT-2 has learned 48 positions: a continuation ends there, and the others are not lost
file(COPY ${models}/gpt2 DESTINATION ${WORK_DIR})
file(COPY ${models}/../text_gpt2/tokenizer.json DESTINATION ${WORK_DIR}/gpt2)
file(WRITE ${WORK_DIR}/prompts.jsonl "{\"prompt\":\"!\"}\n{\"prompt\":\"!\",\"max_tokens\":0}\n")
expect(0 "\n0 +- +48 .*\n1 +- +0 +0.0\nall +48 " "^$" generate --model ${WORK_DIR}/gpt2 --max-tokens 100
       --requests ${WORK_DIR}/prompts.jsonl)
expect(2 "" "--use nobody=2: no --adapter is called nobody" generate --model ${WORK_DIR}/gpt2 --prompt ! --use nobody=2)

# what is wrong with a line is said with its number
foreach(wrong IN ITEMS "\"temperature\":-1" "\"top_p\":0" "\"prompt\":null" "\"prompt\":\"\""
                       "\"max_tokens\":-1" "\"max_tokens\":1048577")
  file(WRITE ${WORK_DIR}/prompts.jsonl "{\"prompt\":\"!\"}\n{\"prompt\":\"!\", ${wrong}}\n")
  expect(1 "^$" "prompts.jsonl:2: " generate --model ${WORK_DIR}/gpt2 --requests ${WORK_DIR}/prompts.jsonl)
endforeach()
