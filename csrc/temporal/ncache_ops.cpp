// The N-cache's update in torch: schema and CPU kernel.
#include "anabranch/temporal/ncache_cpu.hpp"
#include "temporal/ncache_checks.hpp"

namespace anabranch {
namespace {

Tensor ncache_update(const Tensor& keys, const Tensor& event_ids, const Tensor& times, const Tensor& states,
                     const Tensor& src, const Tensor& dst, const Tensor& time, const Tensor& event_id,
                     const Tensor& read_keys, const Tensor& read_event_ids, const Tensor& read_times,
                     const Tensor& read_states, std::vector<int64_t> slots, double replace_probability, int64_t seed) {
  const NCacheUpdateArguments in("ncache_update", {keys, event_ids, times, states}, src, dst, time, event_id,
                                 {read_keys, read_event_ids, read_times, read_states}, slots, replace_probability,
                                 seed);
  in.check_values();
  const Tensor result = empty_on(keys, {ncache_max_hops, 3}, ScalarType::Long);
  const NCacheStats stats = dispatch_bits(states.scalar_type(), [&]<class Bits>(Type<Bits>) {
    return ncache_update_cpu(in.pointers<Bits>(), in.policy, in.batch<Bits>());
  });
  int64_t* to = mutable_data<int64_t>(result);
  for (int hop = 0; hop < ncache_max_hops; ++hop) {
    to[3 * hop] = stats.offered[hop], to[3 * hop + 1] = stats.collisions[hop];
    to[3 * hop + 2] = stats.replacements[hop];
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def(
      "ncache_update(Tensor(a!) keys, Tensor(b!) event_ids, Tensor(c!) times, Tensor(d!) states, Tensor src, Tensor "
      "dst, "
      "Tensor time, Tensor event_id, Tensor read_keys, Tensor read_event_ids, Tensor read_times, Tensor read_states, "
      "int[] slots, float replace_probability, int seed) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) { m.impl("ncache_update", TORCH_BOX(&ncache_update)); }

}  // namespace anabranch
