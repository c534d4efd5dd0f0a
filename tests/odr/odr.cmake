# SPDX-License-Identifier: Apache-2.0
# Two translation units of one program: a host that uses Eigen itself, and a part that only knows graft. Both include
# everything. Link-time optimisation lets the compiler compare the two and report every difference.
add_executable(graft_odr EXCLUDE_FROM_ALL ${CMAKE_CURRENT_LIST_DIR}/host.cpp ${CMAKE_CURRENT_LIST_DIR}/part.cpp)
target_link_libraries(graft_odr PRIVATE graft::graft graft_development)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(graft_odr PRIVATE -O1 -flto)
  target_link_options(graft_odr PRIVATE -O1 -flto -Wodr -Werror=odr -Wlto-type-mismatch -Werror=lto-type-mismatch)
endif()
graft_add_build_test(build.odr graft_odr)
set_tests_properties(build.odr PROPERTIES FIXTURES_SETUP odr)
add_test(NAME odr.two_units COMMAND graft_odr)
set_tests_properties(odr.two_units PROPERTIES FIXTURES_REQUIRED odr)
