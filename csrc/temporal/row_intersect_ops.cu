// The CUDA kernels of sets of two rows of a graph in torch. Schemas are in row_intersect_ops.cpp.
#include "anabranch/temporal/row_set_sum.cuh"
#include "cuda.hpp"
#include "temporal/row_intersect_ops.hpp"

namespace anabranch {
namespace {

struct CudaRowSets {
  static constexpr bool on_host = false;
  OnDeviceOf device;
  explicit CudaRowSets(const Tensor& tensor) : device(tensor) {}

  /// The samples that backwards of weighted sums write and read.
  struct Scratch {
    Tensor ids, sizes;
    Scratch(const RowPairArguments& in, int64_t capacity)
        : ids(empty_on(in.left, {in.pairs(), capacity}, ScalarType::Long)),
          sizes(empty_on(in.left, {in.pairs()}, ScalarType::Long)) {}
    RowSetScratch get() const { return {data_if_any<int64_t>(ids), data_if_any<int64_t>(sizes)}; }
  };

  template <class T>
  void sum(const RowPairArguments& in, const RowSetWeights<T>& weights, const T* x, int64_t width, T* out) const {
    row_set_sum_cuda<T>(in.problem(), weights, x, width, out, device.stream);
  }
  template <class T>
  void sum_backward(const RowPairArguments& in, const RowSetWeights<T>& weights, const T* dout, int64_t width,
                    T* dx) const {
    const Scratch scratch(in, weights.capacity);
    row_set_sum_backward_cuda<T>(in.problem(), weights, dout, width, dx, scratch.get(), device.stream);
  }
  template <class T>
  void dot(const RowPairArguments& in, const T* dout, const T* x, int64_t width, int64_t capacity, int64_t seed,
           T* out) const {
    const Scratch scratch(in, capacity);
    row_set_dot_cuda<T>(in.problem(), dout, x, width, capacity, seed, out, scratch.get(), device.stream);
  }
  void sets(const RowPairArguments& in, int64_t capacity, int64_t seed, int64_t* ids, int64_t* sizes) const {
    row_set_cuda(in.problem(), capacity, seed, ids, sizes, device.stream);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) { ANABRANCH_ROW_INTERSECT_OPS(m, CudaRowSets); }

}  // namespace anabranch
