# SPDX-License-Identifier: Apache-2.0
# Installs the headers, a CMake package and a pkg-config file; all of it independent of the architecture.
if(graft_fetched)
  # A package built on fetched dependencies could not find them again.
  message(STATUS "graft: nothing will be installed, because these dependencies were fetched: ${graft_fetched}")
  return()
endif()

include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(graft_package_dir ${CMAKE_INSTALL_DATADIR}/cmake/graft)

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/graft DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.hpp" PATTERN "*.inc" PATTERN "*.cuh")
foreach(target IN LISTS graft_targets)  # graft_io is exported as graft::io, by a file of its own
  string(REPLACE graft_ "" name ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name})
  install(TARGETS ${target} EXPORT ${target})
  install(EXPORT ${target} NAMESPACE graft:: FILE ${target}.cmake DESTINATION ${graft_package_dir})
endforeach()

configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/graftConfig.cmake.in ${PROJECT_BINARY_DIR}/graftConfig.cmake
                              INSTALL_DESTINATION ${graft_package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/graftConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion ARCH_INDEPENDENT)
install(FILES ${PROJECT_BINARY_DIR}/graftConfig.cmake ${PROJECT_BINARY_DIR}/graftConfigVersion.cmake
              ${CMAKE_CURRENT_LIST_DIR}/FindPCRE2.cmake
        DESTINATION ${graft_package_dir})

list(TRANSFORM graft_eigen_macros PREPEND -D OUTPUT_VARIABLE graft_pc_macros)
list(JOIN graft_pc_macros " " graft_pc_macros)
configure_file(${CMAKE_CURRENT_LIST_DIR}/graft.pc.in ${PROJECT_BINARY_DIR}/graft.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/graft.pc DESTINATION ${CMAKE_INSTALL_DATADIR}/pkgconfig)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/doc/graft)
