# torch's stable C++ interface: its headers and libtorch.so, found through the Python that builds.
#
# find_package(Torch) is not used: it records more libraries than libtorch.so and overrides CMAKE_CUDA_ARCHITECTURES.
# TORCH_TARGET_VERSION 2.10 makes one binary serve torch 2.10 and later.
find_package(Python 3.10 COMPONENTS Interpreter REQUIRED)
execute_process(
  COMMAND ${Python_EXECUTABLE} -c
          "import importlib.util as u, pathlib as p; print(p.Path(u.find_spec('torch').origin).parent.as_posix(), end='')"
  OUTPUT_VARIABLE torch_root RESULT_VARIABLE torch_missing)
if(torch_missing OR NOT EXISTS "${torch_root}/include/torch/csrc/stable/library.h")
  message(FATAL_ERROR "torch >= 2.10 is needed by ${Python_EXECUTABLE} to build anabranch: pip install torch")
endif()
add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE "${torch_root}/include")
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020a000000000000)
# Messages of torch's headers name their files; not where they lay on the machine that built, as it is or as ccache
# writes it.
file(RELATIVE_PATH torch_from_here "${CMAKE_BINARY_DIR}" "${torch_root}/include")
set(no_paths -fmacro-prefix-map=${torch_root}/include/= -fmacro-prefix-map=${torch_from_here}/=)
target_compile_options(torch_stable INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${no_paths}>"
                                              "$<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xcompiler=$<JOIN:${no_paths}, -Xcompiler=>>")
target_link_libraries(torch_stable INTERFACE "${torch_root}/lib/libtorch.so")
target_link_options(torch_stable INTERFACE "LINKER:--no-as-needed")
