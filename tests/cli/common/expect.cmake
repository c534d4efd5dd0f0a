# SPDX-License-Identifier: Apache-2.0
# What every script of the graft command begins with: an empty WORK_DIR, the golden models, and a call with what is
# expected of it.
file(REMOVE_RECURSE ${WORK_DIR})
file(MAKE_DIRECTORY ${WORK_DIR})
set(models ${SOURCE_DIR}/tests/golden/data/models)

# expect(status regex-of-output regex-of-errors arguments...)
function(expect status output errors)
  execute_process(COMMAND ${GRAFT} ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE out ERROR_VARIABLE err)
  list(JOIN ARGN " " call)
  if(NOT result EQUAL status OR NOT out MATCHES "${output}" OR NOT err MATCHES "${errors}")
    message(SEND_ERROR "graft ${call}\nended with ${result}, expected ${status}\noutput: ${out}\nerrors: ${err}")
  endif()
  if(NOT status EQUAL 0 AND NOT err MATCHES "^graft: [^\n]+\n$")
    message(SEND_ERROR "graft ${call}\nshould say what is wrong in one line, but says\n${err}")
  endif()
endfunction()

function(expect_same_file a b)
  file(SHA256 ${a} first)
  file(SHA256 ${b} second)
  if(NOT first STREQUAL second)
    message(SEND_ERROR "${a} and ${b} differ")
  endif()
endfunction()
