// The experts room's CUDA kernels in torch. Schemas are in ops.cpp; the host reads no value and waits for nothing.
#include "anabranch/experts/grouped_mm.cuh"
#include "cuda.hpp"
#include "experts/checks.hpp"

namespace anabranch {
namespace {

Tensor grouped_mm(const Tensor& x, const Tensor& w, const Tensor& offsets, const std::optional<Tensor>& bias_in) {
  check_grouped_mm("grouped_mm", x, w, offsets, bias_in);
  const OnDeviceOf device(x);
  const auto bias = as_contiguous(bias_in);
  const Tensor out = empty_on(x, {x.size(0), w.size(2)}, x.scalar_type());
  const Tensor scratch = empty_on(x, {row_tiles_scratch(w.size(0))}, ScalarType::Int);
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    grouped_mm_cuda(
        GroupedMm<T>{strided_matrix<T>(x), strided_matrix<T>(w), w.stride(0), data<T>(bias), data<int32_t>(offsets),
                     w.size(0), x.size(0), x.size(1), w.size(2), mutable_data<T>(out)},
        mutable_data<int32_t>(scratch), device.stream);
  });
  return out;
}

Tensor grouped_mm_dw(const Tensor& x, const Tensor& dy, const Tensor& offsets) {
  check_grouped_mm_dw("grouped_mm_dw", x, dy, offsets);
  const OnDeviceOf device(x);
  const int64_t num_groups = offsets.size(0) - 1;
  const Tensor dw = empty_on(x, {num_groups, x.size(1), dy.size(1)}, x.scalar_type());
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    grouped_mm_dw_cuda(GroupedMmDw<T>{strided_matrix<T>(x), strided_matrix<T>(dy), data<int32_t>(offsets), num_groups,
                                      x.size(1), dy.size(1), mutable_data<T>(dw)},
                       x.size(0), device.stream);
  });
  return dw;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) {
  m.impl("grouped_mm", TORCH_BOX(&grouped_mm));
  m.impl("grouped_mm_dw", TORCH_BOX(&grouped_mm_dw));
}

}  // namespace anabranch
