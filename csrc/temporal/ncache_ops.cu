// The N-cache's CUDA update in torch. The schema is in ncache_ops.cpp.
#include "anabranch/temporal/ncache.cuh"
#include "cuda.hpp"
#include "temporal/ncache_checks.hpp"

namespace anabranch {
namespace {

Tensor ncache_update(const Tensor& keys, const Tensor& event_ids, const Tensor& times, const Tensor& states,
                     const Tensor& src, const Tensor& dst, const Tensor& time, const Tensor& event_id,
                     const Tensor& read_keys, const Tensor& read_event_ids, const Tensor& read_times,
                     const Tensor& read_states, std::vector<int64_t> slots, double replace_probability, int64_t seed) {
  const OnDeviceOf device(keys);
  const NCacheUpdateArguments in("ncache_update", {keys, event_ids, times, states}, src, dst, time, event_id,
                                 {read_keys, read_event_ids, read_times, read_states}, slots, replace_probability,
                                 seed);
  const Tensor result = empty_on(keys, {ncache_max_hops, 3}, ScalarType::Long);
  auto* stats = reinterpret_cast<unsigned long long*>(mutable_data<int64_t>(result));
  check_cuda(cudaMemsetAsync(stats, 0, 3 * ncache_max_hops * sizeof(*stats), device.stream), "cudaMemsetAsync");
  dispatch_bits(states.scalar_type(), [&]<class Bits>(Type<Bits>) {
    ncache_update_cuda(in.pointers<Bits>(), in.policy, in.batch<Bits>(), stats, device.stream);
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) { m.impl("ncache_update", TORCH_BOX(&ncache_update)); }

}  // namespace anabranch
