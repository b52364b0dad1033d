# nanobind, found through the Python that builds; `_host` belongs to that Python's version.
find_package(Python 3.10 COMPONENTS Interpreter Development.Module REQUIRED)
execute_process(COMMAND ${Python_EXECUTABLE} -m nanobind --cmake_dir OUTPUT_VARIABLE nanobind_ROOT
                OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE nanobind_missing)
if(nanobind_missing)
  message(FATAL_ERROR "nanobind >= 3.1 is needed by ${Python_EXECUTABLE} to build anabranch: pip install nanobind")
endif()
find_package(nanobind 3.1 CONFIG REQUIRED)
