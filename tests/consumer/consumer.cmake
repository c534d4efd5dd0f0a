# SPDX-License-Identifier: Apache-2.0
# Programs of other people: configured, built and run as their own projects, the way their authors would.
function(graft_add_consumer_test name folder)
  add_test(
    NAME consumer.${name}
    COMMAND ${CMAKE_CTEST_COMMAND} --build-and-test ${CMAKE_CURRENT_SOURCE_DIR}/consumer/${folder}
            ${CMAKE_CURRENT_BINARY_DIR}/consumer/${name} --build-generator ${CMAKE_GENERATOR} --build-options
            -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER} -DCMAKE_BUILD_TYPE=Debug "-DCMAKE_PREFIX_PATH=${CMAKE_PREFIX_PATH}"
            ${ARGN} --test-command consumer)
  set_tests_properties(consumer.${name} PROPERTIES TIMEOUT 1200 LABELS consumer)
endfunction()

# The core alone: neither JSON nor PCRE2 is to be had.
graft_add_consumer_test(
  add_subdirectory_core add_subdirectory -DGRAFT_SOURCE=${PROJECT_SOURCE_DIR} -DGRAFT_IO=OFF
  -DGRAFT_FETCH_DEPENDENCIES=OFF -DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON -DCMAKE_DISABLE_FIND_PACKAGE_PCRE2=ON)
graft_add_consumer_test(add_subdirectory add_subdirectory -DGRAFT_SOURCE=${PROJECT_SOURCE_DIR})

if(GRAFT_INSTALL AND NOT graft_fetched)
  set(prefix ${CMAKE_CURRENT_BINARY_DIR}/consumer/prefix)
  add_test(NAME consumer.install COMMAND ${CMAKE_COMMAND} --install ${PROJECT_BINARY_DIR} --prefix ${prefix})
  set_tests_properties(consumer.install PROPERTIES FIXTURES_SETUP installed)
  graft_add_consumer_test(find_package find_package -Dgraft_ROOT=${prefix} -DTARGETS=graft::graft,graft::io,graft::text)
  graft_add_consumer_test(find_package_core find_package -Dgraft_ROOT=${prefix} -DTARGETS=graft::graft
                          -DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON)
  set_tests_properties(consumer.find_package consumer.find_package_core PROPERTIES FIXTURES_REQUIRED installed)
  if(GRAFT_WITH_CUDA)
    list(GET CMAKE_CUDA_ARCHITECTURES 0 architecture)
    graft_add_consumer_test(find_package_cuda find_package -Dgraft_ROOT=${prefix} -DTARGETS=graft::graft,graft::cuda
                            -DCMAKE_CUDA_COMPILER=${CMAKE_CUDA_COMPILER} -DCMAKE_CUDA_ARCHITECTURES=${architecture})
    set_tests_properties(consumer.find_package_cuda PROPERTIES FIXTURES_REQUIRED installed)
  endif()

  find_program(GRAFT_PKG_CONFIG NAMES pkg-config pkgconf)
  if(GRAFT_PKG_CONFIG)
    add_test(NAME consumer.pkg_config
             COMMAND sh -c "$0 -std=c++20 $1 -o consumer_pkg_config $($2 --cflags --libs graft) && ./consumer_pkg_config"
                     ${CMAKE_CXX_COMPILER} ${CMAKE_CURRENT_SOURCE_DIR}/consumer/core.cpp ${GRAFT_PKG_CONFIG})
    set_tests_properties(consumer.pkg_config PROPERTIES FIXTURES_REQUIRED installed
                                                        ENVIRONMENT PKG_CONFIG_PATH=${prefix}/share/pkgconfig)
  endif()
endif()
