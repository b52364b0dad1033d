// The CUDA kernels of sets of two rows of a graph in torch. Schemas are in row_intersect_ops.cpp.
#include "anabranch/temporal/row_intersect.cuh"
#include "cuda.hpp"
#include "temporal/row_intersect_ops.hpp"

namespace anabranch {
namespace {

struct CudaRowSets {
  static constexpr bool on_host = false;
  OnDeviceOf device;
  explicit CudaRowSets(const Tensor& tensor) : device(tensor) {}

  template <class T>
  void sum(const RowPairs& problem, const T* x, int64_t width, T* out) const {
    row_set_sum_cuda<T>(problem, x, width, out, device.stream);
  }
  template <class T>
  void sum_backward(const RowPairs& problem, const T* dout, int64_t width, T* dx) const {
    row_set_sum_backward_cuda<T>(problem, dout, width, dx, device.stream);
  }
  void sets(const RowPairs& problem, int64_t capacity, int64_t seed, int64_t* ids, int64_t* sizes) const {
    row_set_cuda(problem, capacity, seed, ids, sizes, device.stream);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) { ANABRANCH_ROW_INTERSECT_OPS(m, CudaRowSets); }

}  // namespace anabranch
