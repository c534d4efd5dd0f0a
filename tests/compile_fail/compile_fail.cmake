# SPDX-License-Identifier: Apache-2.0
# Each file here holds a mistake inside #ifdef GRAFT_EXPECT_FAIL and promises, in its first lines, what the reader of
# the error will see ("// expected-error: <regex>"). Without the macro it compiles, so that no test rots unnoticed.
file(GLOB sources CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/*.cpp)
set(correct "")
foreach(source IN LISTS sources)
  cmake_path(GET source STEM name)
  file(STRINGS ${source} promise REGEX "^// expected-error: " LIMIT_COUNT 1)
  string(REPLACE "// expected-error: " "" promise "${promise}")
  if(NOT promise)
    message(FATAL_ERROR "graft: ${source} has no line '// expected-error: <regex>'")
  endif()
  add_library(compile_fail_${name} OBJECT EXCLUDE_FROM_ALL ${source})
  target_link_libraries(compile_fail_${name} PRIVATE graft::text)
  target_compile_definitions(compile_fail_${name} PRIVATE GRAFT_EXPECT_FAIL)
  graft_add_build_test(compile_fail.${name} compile_fail_${name})
  # Decides instead of the exit code: a file that compiles does not print the promised words.
  set_tests_properties(compile_fail.${name} PROPERTIES PASS_REGULAR_EXPRESSION "error: [^\n]*${promise}")
endforeach()

add_library(compile_fail_correct OBJECT EXCLUDE_FROM_ALL ${sources})
target_link_libraries(compile_fail_correct PRIVATE graft::text)
graft_add_build_test(compile_fail.correct_halves compile_fail_correct)
