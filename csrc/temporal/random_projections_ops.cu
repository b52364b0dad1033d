// The random projections' CUDA kernels in torch. The schema is in random_projections_ops.cpp. The host reads no value:
// an event with an id out of range is passed over.
#include "anabranch/temporal/random_projections.cuh"
#include "cuda.hpp"
#include "temporal/random_projections_checks.hpp"

namespace anabranch {
namespace {

void random_projections_update(const Tensor& table, const Tensor& last_time, const Tensor& now, const Tensor& src,
                               const Tensor& dst, const Tensor& time, double decay) {
  const OnDeviceOf device(table);
  const RandomProjectionsArguments in("random_projections_update", table, last_time, now, src, dst, time, decay);
  dispatch_floating(table.scalar_type(),
                    [&]<class T>(Type<T>) { random_projections_update_cuda<T>(in.problem<T>(), device.stream); });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) {
  m.impl("random_projections_update", TORCH_BOX(&random_projections_update));
}

}  // namespace anabranch
