// The loop behind peak_flops(): multiply-adds on `sums` independent vectors, all in registers.
//
// Units take two per cycle and need 4 to 6 cycles for each, so 12 sums keep them busy; 12 sums and two factors also fit
// into the 16 registers of SSE2 and AVX2. AVX-512 has 32, and 24 sums leave a margin for longer latencies.
#pragma once

#include <cstdint>

namespace anabranch::detail {

/// Returns the FLOPs done: 2 * width * group for each of `sums` multiply-adds a round.
template <class Lanes, int sums>
double multiply_add_rounds(int64_t rounds, typename Lanes::Packed half) {
  typename Lanes::Packed halves[Lanes::width];
  for (auto& element : halves) element = half;
  const auto factor = Lanes::in_register(Lanes::load(halves));
  typename Lanes::SumVector sum[sums];
  for (auto& one : sum) one = Lanes::zero();
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int i = 0; i < sums; ++i) {
      // Through the sum where it can be a factor, and converging to 1: a product of two constants would leave the loop
      // where multiplication and addition are two instructions.
      if constexpr (Lanes::group == 1)
        sum[i] = Lanes::multiply_add(sum[i], factor, factor);
      else
        sum[i] = Lanes::multiply_add(factor, factor, sum[i]);
    }
  }
  typename Lanes::Sum result[Lanes::width];
  for (int i = 1; i < sums; ++i) sum[0] = Lanes::add(sum[0], sum[i]);
  Lanes::store_sum(result, sum[0]);
  volatile typename Lanes::Sum used = result[0];  // or the loop would be empty
  (void)used;
  return 2.0 * Lanes::width * Lanes::group * sums * static_cast<double>(rounds);
}

}  // namespace anabranch::detail
