# nanobind, and the Pythons that the module `_host` is built for: the one that builds, and those of
# ANABRANCH_HOST_PYTHONS. From 3.12 on one binary, in the stable interface of 3.12, serves all Pythons with a GIL; 3.10,
# 3.11 and those without one need their own.
#
# A machine that builds without nanobind (.ci/gpu needs no network) gets everything else, and anabranch.index.BSkipList
# says what is missing.
find_package(Python 3.10 COMPONENTS Interpreter Development.Module QUIET)
execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir OUTPUT_VARIABLE nanobind_ROOT
                OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
find_package(nanobind 3.1 CONFIG QUIET)
if(NOT Python_Development.Module_FOUND OR NOT nanobind_FOUND)
  message(WARNING "anabranch: _host is not built; it needs Python's headers and nanobind >= 3.1 (pip install nanobind)")
endif()

# `_host` for the Python `interpreter` as target `name`, unless a binary that serves it is built already.
# nanobind_add_module knows one Python; these are its parts, with the headers and the suffix of another.
function(anabranch_add_host name interpreter)
  execute_process(
    COMMAND ${interpreter} -c "import sys, sysconfig as s
free_threaded = bool(s.get_config_var('Py_GIL_DISABLED'))
stable = sys.implementation.name == 'cpython' and sys.version_info >= (3, 12) and not free_threaded
suffix = '.abi3.so' if stable else s.get_config_var('EXT_SUFFIX')
print(s.get_path('include'), suffix, int(stable), int(free_threaded), s.get_python_version(), sep=';', end='')"
    OUTPUT_VARIABLE answer RESULT_VARIABLE failed)
  if(failed)
    message(FATAL_ERROR "ANABRANCH_HOST_PYTHONS: ${interpreter} does not run, must be a Python; leave it out")
  endif()
  list(GET answer 0 Python_INCLUDE_DIRS)  # these two names are nanobind's
  list(GET answer 3 NB_FREE_THREADED)
  list(GET answer 1 suffix)
  list(GET answer 2 stable)
  list(GET answer 4 version)
  get_property(built GLOBAL PROPERTY anabranch_host_suffixes)
  if(suffix IN_LIST built)
    return()
  elseif(version VERSION_LESS 3.10)
    message(FATAL_ERROR "ANABRANCH_HOST_PYTHONS: ${interpreter} is ${version}, must be 3.10 or later; leave it out")
  elseif(NOT EXISTS ${Python_INCLUDE_DIRS}/Python.h)
    message(FATAL_ERROR "ANABRANCH_HOST_PYTHONS: ${interpreter} has no ${Python_INCLUDE_DIRS}/Python.h, must have; "
                        "install its headers (python${version}-dev), or leave it out")
  endif()
  set_property(GLOBAL APPEND PROPERTY anabranch_host_suffixes ${suffix})
  set(library nanobind-static-${version})
  if(NB_FREE_THREADED)
    string(APPEND library -ft)  # nanobind looks at the name
  endif()
  nanobind_build_library(${library})
  set_target_properties(${library} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 0)  # in half the time
  if(stable)
    target_compile_definitions(${library} PUBLIC Py_LIMITED_API=0x030C0000)
  endif()
  add_library(${name} MODULE ${ARGN})
  set_target_properties(${name} PROPERTIES UNITY_BUILD ON OUTPUT_NAME _host PREFIX "" SUFFIX ${suffix})
  nanobind_compile_options(${name})
  nanobind_disable_stack_protector(${name})
  nanobind_link_options(${name})
  nanobind_strip(${name})
  target_include_directories(${name} PRIVATE csrc)
  target_link_libraries(${name} PRIVATE ${library} anabranch_kernels)
  install(TARGETS ${name} LIBRARY DESTINATION anabranch COMPONENT python EXCLUDE_FROM_ALL)
  message(STATUS "anabranch: _host${suffix}")
endfunction()
