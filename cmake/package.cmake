# What `cmake --install` puts into place for C++ programs: headers, the kernels' library, and what find_package reads.
# All of it is relative to the prefix, which may be moved. Wheels do not get it: no Python program reads it, the
# library is as large as all else in a wheel, and headers without it are half of what a C++ program needs.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/anabranch)
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/anabranchConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/package/anabranchConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/package/anabranchConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
set_target_properties(anabranch_headers PROPERTIES EXPORT_NAME headers)
set_target_properties(anabranch_kernels PROPERTIES EXPORT_NAME kernels)
install(TARGETS anabranch_headers anabranch_kernels EXPORT anabranchTargets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/anabranch DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT cpp)
install(EXPORT anabranchTargets NAMESPACE anabranch:: DESTINATION ${package_dir} COMPONENT cpp)
install(FILES ${PROJECT_BINARY_DIR}/package/anabranchConfig.cmake
              ${PROJECT_BINARY_DIR}/package/anabranchConfigVersion.cmake
        DESTINATION ${package_dir} COMPONENT cpp)
