# SPDX-License-Identifier: Apache-2.0
# graft merge and unmerge: the original comes back byte for byte, what was written says where it is from, and what
# cannot be merged or does not belong together is refused in one line.
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/common/expect.cmake)

set(case ${models}/llama_road)
file(GLOB folders ${case}/adapter_*)
list(GET folders 0 road)
list(GET folders 1 other)
foreach(type IN ITEMS f32 bf16 q8_0)
  set(base ${WORK_DIR}/base_${type}.gguf)
  expect(0 "GGUF" "" convert ${case} ${base} --type ${type})
  expect(0 "tensors changed.*undo file" "" merge --model ${base} --adapter r=${road}=0.5 --out ${WORK_DIR}/m.gguf
         --undo ${WORK_DIR}/undo.safetensors)
  expect(0 "bit for bit" "" unmerge --model ${WORK_DIR}/m.gguf --undo ${WORK_DIR}/undo.safetensors
         --out ${WORK_DIR}/back.gguf)
  expect_same_file(${base} ${WORK_DIR}/back.gguf)
  expect(0 "bit for bit" "" unmerge --model ${WORK_DIR}/m.gguf --base ${base} --out ${WORK_DIR}/back.gguf)
  expect_same_file(${base} ${WORK_DIR}/back.gguf)
  expect(0 "approximate, by the inverse formula" "" unmerge --model ${WORK_DIR}/m.gguf --adapter r=${road}=0.5
         --out ${WORK_DIR}/about.gguf)
endforeach()
expect(0 "\"base_sha256\":\"[0-9a-f]+\"" "" merge --model ${base} --adapter r=${road} --out ${WORK_DIR}/j.gguf --json)

# merged twice, undone twice
set(base ${WORK_DIR}/base_f32.gguf)
expect(0 "" "" merge --model ${base} --adapter r=${road} --out ${WORK_DIR}/one.gguf --undo ${WORK_DIR}/u1)
expect(0 "" "" merge --model ${WORK_DIR}/one.gguf --adapter r=${other} --out ${WORK_DIR}/two.gguf --undo ${WORK_DIR}/u2)
expect(1 "" "belongs to another merge" unmerge --model ${WORK_DIR}/two.gguf --undo ${WORK_DIR}/u1 --out ${WORK_DIR}/x.gguf)
expect(0 "" "" unmerge --model ${WORK_DIR}/two.gguf --undo ${WORK_DIR}/u2 --out ${WORK_DIR}/one_again.gguf)
expect_same_file(${WORK_DIR}/one.gguf ${WORK_DIR}/one_again.gguf)
expect(0 "" "" unmerge --model ${WORK_DIR}/one_again.gguf --undo ${WORK_DIR}/u1 --out ${WORK_DIR}/base_again.gguf)
expect_same_file(${base} ${WORK_DIR}/base_again.gguf)

# another type, and back
expect(0 "" "" merge --model ${base} --adapter r=${road} --out ${WORK_DIR}/typed.gguf --type q8_0 --undo ${WORK_DIR}/u3)
expect(0 "" "" unmerge --model ${WORK_DIR}/typed.gguf --undo ${WORK_DIR}/u3 --out ${WORK_DIR}/untyped.gguf)
expect_same_file(${base} ${WORK_DIR}/untyped.gguf)

# a folder
expect(0 "" "" merge --model ${case} --adapter r=${road} --out ${WORK_DIR}/folder --undo ${WORK_DIR}/u4)
expect(0 "bit for bit" "" unmerge --model ${WORK_DIR}/folder --undo ${WORK_DIR}/u4 --out ${WORK_DIR}/folder_back)
expect(0 "" "" logits --model ${WORK_DIR}/folder_back --adapter r=${road} --requests ${CMAKE_CURRENT_LIST_DIR}/merge.jsonl
       --out ${WORK_DIR}/a.safetensors --threads 1)
expect(0 "" "" logits --model ${case} --adapter r=${road} --requests ${CMAKE_CURRENT_LIST_DIR}/merge.jsonl
       --out ${WORK_DIR}/b.safetensors --threads 1)
expect_same_file(${WORK_DIR}/a.safetensors ${WORK_DIR}/b.safetensors)

# wrong calls
expect(2 "" "needs one of --undo" unmerge --model ${WORK_DIR}/one.gguf --out ${WORK_DIR}/x.gguf)
expect(2 "" "--out ends in .gguf" merge --model ${base} --adapter r=${road} --out ${WORK_DIR}/x)
expect(2 "" "is given twice" merge --model ${base} --adapter r=${road} --adapter r=${road} --out ${WORK_DIR}/x.gguf)
expect(2 "" "cannot hold q4_1" merge --model ${case} --adapter r=${road} --out ${WORK_DIR}/x --type q4_1)
expect(1 "" "is not a merged model" unmerge --model ${base} --undo ${WORK_DIR}/u1 --out ${WORK_DIR}/x.gguf)
expect(1 "" "is not an undo file" unmerge --model ${WORK_DIR}/one.gguf --undo ${road}/adapter_model.safetensors
       --out ${WORK_DIR}/x.gguf)
expect(1 "" "is not what .* was merged from" unmerge --model ${WORK_DIR}/one.gguf --base ${WORK_DIR}/two.gguf
       --out ${WORK_DIR}/x.gguf)
expect(1 "" "was merged with other adapters or weights" unmerge --model ${WORK_DIR}/one.gguf --adapter r=${road}=2
       --out ${WORK_DIR}/x.gguf)
file(GLOB pedro ${models}/llama_pedro/adapter_defaults)
expect(1 "" "llama_pedro: PEDRO makes its vectors from each prompt" merge --model ${models}/llama_pedro --adapter p=${pedro}
       --out ${WORK_DIR}/x)
if(EXISTS ${WORK_DIR}/x OR EXISTS ${WORK_DIR}/x.gguf)
  message(SEND_ERROR "a merge that failed left a file")
endif()
