// One source for a kernel, two compilers: nvcc for the GPU, the host compiler for the tests that prove it.
//
// A hand-written kernel includes this header and nothing of CUDA, and keeps to four rules:
//   - It is launched by anabranch::launch(kernel, grid, block, shared_bytes, stream, args...), not by <<<>>>.
//   - All its shared memory comes from SharedMemory:
//         SharedMemory shared;
//         SharedArray<float> tile = shared.take<float>(64 * 33);
//         SharedArray<int> counters = shared.take<int>(num_groups);
//     and the launch asks for shared_bytes<float, int>(64 * 33, num_groups). Both sides round every stretch up to 16
//     bytes, so each starts aligned for vector access. A copy of a SharedMemory takes the same bytes again, which is
//     how two phases of a kernel use one stretch under two types.
//   - Elements of shared memory are read into named types (`const float x = tile[i];`), never into `auto`.
//   - No float atomics, no spinning on memory, no __activemask(). Hopper kernels wait on mbarriers (mbarrier.cuh).
//
// Compiled by nvcc, all of this is as thin as the raw pointers it stands for. Compiled by the host compiler, every
// thread is a fiber, and the harness (simt_host.hpp) finds indices out of range, reads of shared memory that nobody
// wrote, races in shared memory, barriers that not all threads reach, and collectives that not all lanes join; it runs
// the threads in the order that simt::current_schedule() names. Global memory is plain memory there: AddressSanitizer
// and guard zones around the buffers watch it.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__CUDACC__)

#include "anabranch/core/simt_host.hpp"

#else

#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace anabranch {

template <class T>
class SharedArray {
 public:
  __device__ explicit SharedArray(T* data) : data_(data) {}
  template <class Index>
  __device__ T& operator[](Index i) const {
    return data_[i];
  }

 private:
  T* data_;
};

class SharedMemory {
 public:
  __device__ SharedMemory() {
    extern __shared__ __align__(128) unsigned char anabranch_shared_memory[];
    next_ = anabranch_shared_memory;
  }
  template <class T>
  __device__ SharedArray<T> take(int64_t count) {
    SharedArray<T> taken(reinterpret_cast<T*>(next_));
    next_ += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    return taken;
  }

 private:
  unsigned char* next_;
};

/// Launches kernel(args...) and throws std::runtime_error if CUDA refuses; args convert to the kernel's own types.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
            Args&&... args) {
  constexpr size_t kSharedWithoutAsking = 48 * 1024;
  cudaError_t error = cudaSuccess;
  if (shared_bytes > kSharedWithoutAsking) {
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  }
  if (error == cudaSuccess) {
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    error = cudaLaunchKernelEx(&config, kernel, static_cast<Params>(std::forward<Args>(args))...);
  }
  if (error != cudaSuccess) {
    cudaGetLastError();  // so that the next call of somebody else does not report it again
    throw std::runtime_error(std::string("CUDA kernel launch failed: ") + cudaGetErrorString(error));
  }
}

}  // namespace anabranch

#endif

namespace anabranch {

/// Bytes of shared memory for counts... elements of Types..., each stretch as SharedMemory::take lays it out.
template <class... Types, class... Counts>
constexpr size_t shared_bytes(Counts... counts) {
  static_assert(sizeof...(Types) == sizeof...(Counts));
  return (((static_cast<size_t>(counts) * sizeof(Types) + 15) / 16 * 16) + ... + size_t{0});
}

constexpr unsigned kAllLanes = 0xffffffffu;

}  // namespace anabranch
