# Sets ANABRANCH_BUILD_CUDA from the option ANABRANCH_CUDA and enables the language. nvcc is enough: no driver, no GPU.
#
# nvcc before 13.0 gives the host stubs of a kernel template the same name in every image: where files of one library are
# compiled for different architectures, as *_sm90.cu are, the linker keeps one stub for all, and a launch may find no
# kernel.
set(ANABRANCH_BUILD_CUDA OFF)
if(NOT ANABRANCH_CUDA STREQUAL "OFF")
  include(CheckLanguage)
  set(CMAKE_CUDA_ARCHITECTURES "${ANABRANCH_CUDA_ARCHITECTURES}")
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    set(old_nvcc "nvcc is ${CMAKE_CUDA_COMPILER_VERSION}, must be 13.0 or later")
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 13.0)
      set(ANABRANCH_BUILD_CUDA ON)
    elseif(ANABRANCH_CUDA STREQUAL "ON")
      message(FATAL_ERROR "ANABRANCH_CUDA=ON, but ${old_nvcc}: put a newer one on PATH or set CUDACXX")
    else()
      message(WARNING "anabranch: no CUDA kernels are built: ${old_nvcc}; put a newer one on PATH or set CUDACXX")
    endif()
  elseif(ANABRANCH_CUDA STREQUAL "ON")
    message(FATAL_ERROR "ANABRANCH_CUDA=ON, but no nvcc was found: put it on PATH or set CUDACXX")
  endif()
endif()
message(STATUS "anabranch: CUDA kernels ${ANABRANCH_BUILD_CUDA}")
