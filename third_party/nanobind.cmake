# nanobind, found through the Python that builds; `_host` belongs to that Python's version. A machine that builds without
# it (.ci/gpu needs no network) gets everything else, and anabranch.index.BSkipList says what is missing.
find_package(Python 3.10 COMPONENTS Interpreter Development.Module QUIET)
execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir OUTPUT_VARIABLE nanobind_ROOT
                OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
find_package(nanobind 3.1 CONFIG QUIET)
if(NOT Python_Development.Module_FOUND OR NOT nanobind_FOUND)
  message(WARNING "anabranch: _host is not built; it needs Python's headers and nanobind >= 3.1 (pip install nanobind)")
endif()
