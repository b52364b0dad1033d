# What `cmake --install` puts into place for C++ programs: headers, the kernels' library, and what find_package reads.
# All of it is relative to the prefix, which may be moved. Wheels do not get it: Python needs none of it, and the
# library would double their size.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/anabranch)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/anabranchConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/package/anabranchConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/anabranchConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(TARGETS anabranch_headers anabranch_kernels EXPORT anabranchTargets COMPONENT cpp
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/anabranch DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp)
install(EXPORT anabranchTargets NAMESPACE anabranch:: DESTINATION ${package_dir} COMPONENT cpp)
install(FILES ${PROJECT_BINARY_DIR}/package/anabranchConfig.cmake
              ${PROJECT_BINARY_DIR}/package/anabranchConfigVersion.cmake
        DESTINATION ${package_dir} COMPONENT cpp)
