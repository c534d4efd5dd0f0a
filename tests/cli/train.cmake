# SPDX-License-Identifier: Apache-2.0
# graft train on tiny models: every method ends with a folder that graft reads back, a training that was stopped or
# killed ends with the bytes of one that was not, and what is wrong is said in one line.
cmake_minimum_required(VERSION 3.25)
include(${CMAKE_CURRENT_LIST_DIR}/common/expect.cmake)

# The golden models have no tokenizer: one token per character will do.
file(COPY ${models}/llama_pedro/config.json ${models}/llama_pedro/model.safetensors DESTINATION ${WORK_DIR}/llama)
file(COPY ${models}/bert_classifier/config.json ${models}/bert_classifier/model.safetensors DESTINATION ${WORK_DIR}/bert)
set(characters a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9)
function(write_tokenizer folder specials space model added more)
  set(vocabulary "")
  set(added_tokens "")
  set(id 0)
  foreach(token IN LISTS specials)
    string(APPEND vocabulary "\"${token}\": ${id}, ")
    string(APPEND added_tokens "{\"id\": ${id}, \"content\": \"${token}\", \"special\": true, \"normalized\": false,
      \"single_word\": false, \"lstrip\": false, \"rstrip\": false}, ")
    math(EXPR id "${id} + 1")
  endforeach()
  foreach(token IN LISTS space characters)
    string(APPEND vocabulary "\"${token}\": ${id}, ")
    math(EXPR id "${id} + 1")
  endforeach()
  string(REGEX REPLACE ", $" "" vocabulary "${vocabulary}")
  string(REGEX REPLACE ", $" "" added_tokens "${added_tokens}")
  file(WRITE ${folder}/tokenizer.json "{\"version\": \"1.0\", \"added_tokens\": [${added_tokens}], ${added},
    \"model\": {${model}, \"vocab\": {${vocabulary}}}}")
  file(WRITE ${folder}/tokenizer_config.json "{${more}}")
endfunction()
write_tokenizer(${WORK_DIR}/llama "<s>;</s>" "Ġ" "\"type\": \"BPE\", \"merges\": []"
  "\"normalizer\": null, \"decoder\": {\"type\": \"ByteLevel\"},
   \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, \"use_regex\": true}"
  "\"bos_token\": \"<s>\", \"eos_token\": \"</s>\"")
set(pieces "${characters}")
list(TRANSFORM pieces PREPEND "##")
write_tokenizer(${WORK_DIR}/bert "[PAD];[UNK];[CLS];[SEP]" "${pieces}"
  "\"type\": \"WordPiece\", \"unk_token\": \"[UNK]\", \"continuing_subword_prefix\": \"##\", \"max_input_chars_per_word\": 100"
  "\"normalizer\": {\"type\": \"BertNormalizer\", \"clean_text\": true, \"handle_chinese_chars\": true, \"lowercase\": true},
   \"pre_tokenizer\": {\"type\": \"BertPreTokenizer\"}, \"decoder\": {\"type\": \"WordPiece\", \"prefix\": \"##\"},
   \"post_processor\": {\"type\": \"TemplateProcessing\",
     \"single\": [{\"SpecialToken\": {\"id\": \"[CLS]\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}},
                  {\"SpecialToken\": {\"id\": \"[SEP]\", \"type_id\": 0}}],
     \"pair\": [{\"SpecialToken\": {\"id\": \"[CLS]\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"A\", \"type_id\": 0}},
                {\"SpecialToken\": {\"id\": \"[SEP]\", \"type_id\": 0}}, {\"Sequence\": {\"id\": \"B\", \"type_id\": 1}},
                {\"SpecialToken\": {\"id\": \"[SEP]\", \"type_id\": 1}}],
     \"special_tokens\": {\"[CLS]\": {\"id\": \"[CLS]\", \"ids\": [2], \"tokens\": [\"[CLS]\"]},
                          \"[SEP]\": {\"id\": \"[SEP]\", \"ids\": [3], \"tokens\": [\"[SEP]\"]}}}"
  "\"cls_token\": \"[CLS]\", \"sep_token\": \"[SEP]\", \"pad_token\": \"[PAD]\", \"unk_token\": \"[UNK]\"")

set(data ${WORK_DIR}/data.jsonl)
set(texts ${WORK_DIR}/texts.jsonl)
foreach(word IN ITEMS one two three four five six seven eight nine ten)
  string(LENGTH ${word} length)
  file(APPEND ${data} "{\"prompt\": \"say ${word}\", \"completion\": \" it is ${word}${length}\"}\n")
  math(EXPR label "${length} % 3")
  file(APPEND ${texts} "{\"prompt\": \"${word}\", \"label\": \"LABEL_${label}\"}\n")
endforeach()

function(same_adapter a b)
  foreach(file IN ITEMS adapter_model.safetensors adapter_config.json)
    expect_same_file(${WORK_DIR}/${a}/${file} ${WORK_DIR}/${b}/${file})
  endforeach()
endfunction()
function(no_checkpoint folder)
  file(GLOB left ${WORK_DIR}/${folder}/checkpoint*)
  if(left)
    message(SEND_ERROR "${folder} is complete, but ${left} is still there")
  endif()
endfunction()

# Every method; what comes out loads, and knows the data better than the model did.
set(train train --model ${WORK_DIR}/llama --data ${data} --threads 1 --batch 4 --steps 25 --lr 2e-2)
expect(0 "\"loss\"" "^$" eval --model ${WORK_DIR}/llama --data ${data} --json)
execute_process(COMMAND ${GRAFT} eval --model ${WORK_DIR}/llama --data ${data} --json OUTPUT_VARIABLE base)
string(JSON base GET ${base} loss)
foreach(method IN ITEMS lora road ia3 pedro)
  set(more "")
  set(says "")
  if(method STREQUAL lora)
    set(more --set r=4)
    set(says ".*\"lora_alpha\":8[,.]")  # twice the rank
  elseif(method STREQUAL road)
    set(more --variant road_4 --group-size 2)
    set(says ".*\"road_4\"")
  elseif(method STREQUAL pedro)
    set(more --bilevel 0.3 --set pooling=mean)
  endif()
  expect(0 "\"method\":\"${method}\".*\"live_parameters\":[0-9]+.*\"validation_loss\":[0-9.]+${says}" "^$" ${train} --method ${method} --out ${WORK_DIR}/${method}
      --val-fraction 0.2 --json ${more})
  no_checkpoint(${method})
  expect(0 "kind +adapter" "^$" info ${WORK_DIR}/${method} --model ${WORK_DIR}/llama)
  execute_process(COMMAND ${GRAFT} eval --model ${WORK_DIR}/llama --adapter a=${WORK_DIR}/${method} --use a --data ${data}
                          --json OUTPUT_VARIABLE trained)
  string(JSON trained GET ${trained} loss)
  if(NOT trained LESS base)
    message(SEND_ERROR "${method}: the loss was ${base} and is ${trained}")
  endif()
  file(STRINGS ${WORK_DIR}/${method}/log.csv lines)
  list(LENGTH lines lines)
  if(NOT lines EQUAL 26)
    message(SEND_ERROR "${method}: log.csv has ${lines} lines, expected a header and 25 steps")
  endif()
endforeach()

# In native precision rows that meet weights in bf16 are rounded on the way there and back, which learns as well.
expect(0 "" "^$" convert ${WORK_DIR}/llama ${WORK_DIR}/narrow --type bf16)
set(native train --model ${WORK_DIR}/narrow --data ${data} --threads 1 --batch 4 --steps 25 --lr 2e-2 --method lora)
expect(0 "" "^$" ${native} --precision native --out ${WORK_DIR}/native)
execute_process(COMMAND ${GRAFT} eval --model ${WORK_DIR}/narrow --adapter a=${WORK_DIR}/native --use a --data ${data} --json
                OUTPUT_VARIABLE trained)
string(JSON trained GET ${trained} loss)
if(NOT trained LESS base)
  message(SEND_ERROR "in native precision: the loss was ${base} and is ${trained}")
endif()
expect(1 "^$" "was made with device \"cpu, native\"" ${native} --out ${WORK_DIR}/native --resume)

# Weights found on data: better than no adapter and than the one that was trained on noise, the same for the same seed.
set(noise ${WORK_DIR}/noise.jsonl)
file(WRITE ${noise} "{\"prompt\": \"say one\", \"completion\": \"qqqqqq\"}\n")
expect(0 "" "^$" train --model ${WORK_DIR}/llama --data ${noise} --threads 1 --steps 10 --lr 2e-2 --method lora --set r=4
       --out ${WORK_DIR}/worse)
foreach(run IN ITEMS found again)
  expect(0 "LORA.*lora=[0-9.-]+.*worse=[0-9.-]+" "^$" combine --op search --model ${WORK_DIR}/llama --data ${data} --seed 3
         --evaluations 30 --threads 1 --out ${WORK_DIR}/${run} ${WORK_DIR}/lora ${WORK_DIR}/worse)
endforeach()
same_adapter(found again)
execute_process(COMMAND ${GRAFT} eval --model ${WORK_DIR}/llama --adapter a=${WORK_DIR}/found --use a --data ${data} --json
                OUTPUT_VARIABLE searched)
string(JSON searched GET ${searched} loss)
execute_process(COMMAND ${GRAFT} eval --model ${WORK_DIR}/llama --adapter a=${WORK_DIR}/worse --use a --data ${data} --json
                OUTPUT_VARIABLE worse)
string(JSON worse GET ${worse} loss)
if(NOT searched LESS base OR NOT searched LESS worse)
  message(SEND_ERROR "searched weights give a loss of ${searched}; without an adapter it is ${base}, with noise ${worse}")
endif()
set(search combine --op search --out ${WORK_DIR}/none ${WORK_DIR}/lora)
expect(2 "" "search needs --model" ${search} --data ${data})
expect(2 "" "search needs --data" ${search} --model ${WORK_DIR}/llama)
expect(1 "^$" "cannot be opened" ${search} --model ${WORK_DIR}/llama --data ${WORK_DIR}/no)

# Two tasks in one rotation of the residual stream, each in blocks of its own.
foreach(part IN ITEMS 0 1)
  file(STRINGS ${data} lines)
  foreach(line IN LISTS lines)
    string(REPLACE "}" ", \"part\": ${part}}" line "${line}")
    file(APPEND ${WORK_DIR}/parts.jsonl "${line}\n")
  endforeach()
endforeach()
set(parts train --model ${WORK_DIR}/llama --data ${WORK_DIR}/parts.jsonl --threads 1 --steps 10 --lr 2e-2 --method road
          --group-size 2 --targets layers.1 --set positions=last_prompt)
expect(0 "\"positions\":\"last_prompt\".*\"parts\":2" "^$" ${parts} --parts 2 --out ${WORK_DIR}/parts --json)
foreach(part IN ITEMS 0 1)
  expect(0 "ROAD" "^$" combine --op subspace --part ${part} --out ${WORK_DIR}/part${part} ${WORK_DIR}/parts)
  execute_process(COMMAND ${GRAFT} eval --model ${WORK_DIR}/llama --adapter a=${WORK_DIR}/part${part} --use a --data ${data}
                          --json OUTPUT_VARIABLE trained)
  string(JSON trained GET ${trained} loss)
  if(NOT trained LESS base)
    message(SEND_ERROR "part ${part}: the loss was ${base} and is ${trained}")
  endif()
endforeach()
expect(0 "positions" "^$" ${parts} --parts 2 --set positions=[0,-2] --out ${WORK_DIR}/listed --json)
expect(0 "kind +adapter" "^$" info ${WORK_DIR}/listed --model ${WORK_DIR}/llama)
expect(1 "^$" "parts.jsonl:1: is for part 0 of the module, which has 0 parts" ${parts} --out ${WORK_DIR}/none)

# Patterns give modules a rank of their own.
expect(0 "" "^$" train --model ${WORK_DIR}/llama --method lora --data ${data} --steps 1 --targets q_proj,v_proj --rank 2
       --set "rank_pattern={\"(q|k)_proj\": 3}" --out ${WORK_DIR}/patterns --json)
expect(0 "ranks +.2,3" "^$" info ${WORK_DIR}/patterns --model ${WORK_DIR}/llama)

# A classifier's head comes along.
expect(0 "validation_loss" "^$" train --model ${WORK_DIR}/bert --method lora --data ${texts} --val ${texts} --threads 1
    --out ${WORK_DIR}/classifier --steps 30 --lr 2e-2 --batch 5)
expect(0 "classifier.weight" "^$" info ${WORK_DIR}/classifier --model ${WORK_DIR}/bert --json)

# Killed at any moment, and resumed: the same bytes. The moment is a number of lines in the log, so that neither a fast
# nor a busy machine changes what is tested.
find_program(SHELL sh)
set(long train --model ${WORK_DIR}/llama --data ${data} --batch 3 --accumulate 2 --steps 200 --warmup 0.1
         --dropout 0.1 --val-fraction 0.2 --method lora --save-every 3 --weight-decay 0.01)
string(REPLACE "--steps;200" "--threads;1;--steps;100000" endless "${long}")
# signal_at_line(signal lines folder arguments...): the status and the errors, in `result` and `err`
function(signal_at_line signal lines folder)
  execute_process(COMMAND ${SHELL} -c "
signal=$1 lines=$2 log=$3; shift 3
\"$@\" & pid=$!
while kill -0 $pid 2>/dev/null && [ \"$(cat \"$log\" 2>/dev/null | wc -l)\" -lt $lines ]; do :; done
kill -s $signal $pid 2>/dev/null
wait $pid" sh ${signal} ${lines} ${WORK_DIR}/${folder}/log.csv ${GRAFT} ${ARGN} --out ${WORK_DIR}/${folder}
                  RESULT_VARIABLE result ERROR_VARIABLE err OUTPUT_QUIET)
  set(result ${result} PARENT_SCOPE)
  set(err "${err}" PARENT_SCOPE)
endfunction()
expect(0 "" "^$" ${long} --threads 1 --out ${WORK_DIR}/whole)
if(SHELL)
  set(killed 0)
  foreach(lines IN ITEMS 2 7 20 21 60 100 150)
    signal_at_line(KILL ${lines} killed ${long} --threads 2 --resume)
    if(NOT result EQUAL 0)
      math(EXPR killed "${killed} + 1")
    endif()
  endforeach()
  expect(0 "" "^$" ${long} --threads 2 --out ${WORK_DIR}/killed --resume)
  same_adapter(whole killed)
  no_checkpoint(killed)
  if(killed EQUAL 0)
    message(SEND_ERROR "no run was killed before its end, so resuming was not tested")
  endif()
  # the log knows every step once
  file(STRINGS ${WORK_DIR}/killed/log.csv lines)
  list(LENGTH lines lines)
  if(NOT lines EQUAL 201)
    message(SEND_ERROR "log.csv of a resumed training has ${lines} lines, expected 201")
  endif()

  # Ctrl-C saves; the rest is done by --resume, with the options it began with only. (A shell starts background jobs
  # deaf to SIGINT, and the command listens again.)
  signal_at_line(INT 20 stopped ${endless})
  if(NOT result EQUAL 1 OR NOT err MATCHES "^graft: stopped behind step [0-9]+ of 100000; --resume[^\n]*\n$")
    message(SEND_ERROR "a training that was interrupted ended with ${result}, ${err}")
  endif()
  file(GLOB left ${WORK_DIR}/stopped/checkpoint-*/adapter_model.safetensors)
  if(NOT left)
    message(SEND_ERROR "a training that was interrupted left no checkpoint")
  endif()
  expect(1 "^$" "stopped: holds a training that stopped behind step" ${long} --out ${WORK_DIR}/stopped)
  expect(1 "^$" "was made with steps 100000, now it is 200" ${long} --out ${WORK_DIR}/stopped --resume)
endif()
# What is complete is not begun again.
expect(0 "steps +200" "^$" ${long} --out ${WORK_DIR}/whole --resume)
expect(1 "^$" "was made with lr 0.0002, now it is 0.5" ${long} --lr 0.5 --out ${WORK_DIR}/whole --resume)

# Wrong use: 2. Wrong files: 1, with file and line, and nothing is written.
set(lora train --model ${WORK_DIR}/llama --data ${data} --out ${WORK_DIR}/none)
expect(2 "" "--method" ${lora})
expect(2 "" "--method" ${lora} --method dora)
expect(2 "" "no option 'rnak'; its options are .*lora_alpha" ${lora} --method lora --set rnak=4)
expect(2 "" "KEY=VALUE" ${lora} --method lora --set rank)
expect(2 "" "whole number" ${lora} --method lora --rank 2.5)
expect(2 "" "a rank is at least 1, not 0" ${lora} --method lora --rank 0)
expect(2 "" "a rank is at least 1, not -1" ${lora} --method pedro --set r=-1)
foreach(method IN ITEMS lora pedro)
  expect(2 "" "needs [0-9.e+]+ GB to be trained, and this machine has" ${lora} --method ${method} --rank 1000000000000)
endforeach()
expect(0 "" "warning: rank 200 is more than any of the modules can use, which is 32"
       train --model ${WORK_DIR}/llama --data ${data} --out ${WORK_DIR}/wide --method lora --rank 200 --steps 1)
expect(2 "" "--beta1: Value 1 is not from 0 up and below 1" ${lora} --method lora --beta1 1)
foreach(wrong IN ITEMS "epsilon;0" "epsilon;nan" "weight-decay;nan" "lora-plus;nan" "lr;nan" "lr;0" "epochs;inf"
                       "val-fraction;nan" "dropout;nan" "warmup;-1" "seed;-1" "seed;18446744073709551616" "alpha;0")
  list(GET wrong 0 flag)
  list(GET wrong 1 value)
  expect(2 "" "" ${lora} --method lora --${flag} ${value})
endforeach()
expect(2 "" "no option 'variant'" ${lora} --method lora --variant road_1)
expect(2 "" "--bilevel has no effect on lora" ${lora} --method lora --bilevel 0.5)
expect(2 "" "--lora-plus has no effect on ia3" ${lora} --method ia3 --lora-plus 4)
expect(2 "" "--parts has no effect on lora" ${lora} --method lora --parts 2)
expect(2 "" "--dropout has no effect on pedro" ${lora} --method pedro --dropout 0.1)
expect(2 "" "--max-length is 1000" ${lora} --method lora --max-length 1000)
expect(2 "" "give one" ${lora} --method lora --val ${data} --val-fraction 0.1)
file(WRITE ${WORK_DIR}/file "")
expect(1 "^$" "file: cannot be created" train --model ${WORK_DIR}/llama --data ${data} --out ${WORK_DIR}/file --method ia3)
expect(1 "^$" "'w_proj'" ${lora} --method lora --targets q_proj,w_proj)
expect(1 "^$" "group_size 64" ${lora} --method road)
expect(1 "^$" "cannot be opened" train --model ${WORK_DIR}/llama --data ${WORK_DIR}/no --out ${WORK_DIR}/none --method lora)
expect(1 "^$" "no_such_file: does not exist" train --model ${WORK_DIR}/no_such_file --data ${data} --out ${WORK_DIR}/none
    --method lora)
file(WRITE ${WORK_DIR}/bad.jsonl "{\"prompt\": \"a\", \"completion\": \"b\"}\n\n{\"prompt\": \"a\"}\n")
expect(1 "^$" "bad.jsonl:3: needs a .completion" train --model ${WORK_DIR}/llama --data ${WORK_DIR}/bad.jsonl --out
    ${WORK_DIR}/none --method lora)
expect(1 "^$" "data.jsonl:1: " train --model ${WORK_DIR}/bert --data ${data} --out ${WORK_DIR}/none --method lora)
expect(1 "^$" "data.jsonl:1: .*does not fit into 5" ${lora} --method lora --max-length 5)
if(EXISTS ${WORK_DIR}/none)
  message(SEND_ERROR "a call that failed before training left a folder behind")
endif()
