# The development package: headers, the static library and what find_package
# reads. Its own component, so that the wheel, which installs the component
# `python` alone, carries none of it.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/block_sparse)

install(TARGETS block_sparse EXPORT block_sparse-targets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp)
# cuda.h declares what the library of the CUDA backend defines, not this one.
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/block_sparse
        DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp
        FILES_MATCHING PATTERN "*.h" PATTERN "cuda.h" EXCLUDE)
install(EXPORT block_sparse-targets NAMESPACE block_sparse::
        DESTINATION ${package_dir} COMPONENT cpp)

configure_package_config_file(
  ${PROJECT_SOURCE_DIR}/cmake/block_sparse-config.cmake.in
  ${PROJECT_BINARY_DIR}/block_sparse-config.cmake INSTALL_DESTINATION ${package_dir})
# Below 1.0 a new minor version may change the interface.
write_basic_package_version_file(
  ${PROJECT_BINARY_DIR}/block_sparse-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/block_sparse-config.cmake
              ${PROJECT_BINARY_DIR}/block_sparse-config-version.cmake
        DESTINATION ${package_dir} COMPONENT cpp)
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE
        DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/block_sparse COMPONENT cpp)
