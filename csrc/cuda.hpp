// What a CUDA op needs besides its kernels: the device of its tensors made current, and torch's stream there.
//
// The library links no CUDA library of torch, so that it loads on a machine without a driver. The one symbol it wants
// from there is weak: it is found through libtorch.so where torch has CUDA, and never called where there is no tensor
// to call it with. The CUDA runtime is static; it shares the device's primary context with torch's own.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <stdexcept>
#include <string>

#include "torch.hpp"

extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index,
                                                                                   void** ret_stream);

namespace anabranch {

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

/// Multiprocessors of the current device if it runs the Hopper kernels (capability 9.0), else 0.
inline int hopper_multiprocessors() {
  int device = 0, major = 0, minor = 0, multiprocessors = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "cudaDeviceGetAttribute");
  check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "cudaDeviceGetAttribute");
  check_cuda(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
             "cudaDeviceGetAttribute");
  return major == 9 && minor == 0 ? multiprocessors : 0;
}

/// Bytes of shared memory that a block may ask for on the current device.
inline int64_t shared_memory_limit() {
  int device = 0, bytes = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return bytes;
}

/// Makes the device of a tensor current for as long as it lives; `stream` is torch's current stream there.
///
/// The device before is restored by torch's own guard, which makes no context on a device that has none: cudaSetDevice
/// would, and a process that works on cuda:1 alone would hold memory on cuda:0. That guard does nothing where the
/// device is current already, so cudaSetDevice sees to it that this thread has a context too.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    const int device = tensor.get_device_index();
    check_cuda(cudaSetDevice(device), "cudaSetDevice");
    void* current = nullptr;
    if (!aoti_torch_get_current_cuda_stream || aoti_torch_get_current_cuda_stream(device, &current) != 0) {
      throw std::runtime_error("anabranch: this torch gives no CUDA stream; install a torch built with CUDA");
    }
    stream = static_cast<cudaStream_t>(current);
  }
  OnDeviceOf(const OnDeviceOf&) = delete;

  cudaStream_t stream;

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace anabranch
