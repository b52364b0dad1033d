// GCC 12 takes the undefined pass-through operands inside its own AVX-512 header for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "anabranch/core/gemm_lanes_avx512bf16.hpp"
#include "anabranch/core/peak.hpp"
#include "anabranch/core/peak_loop.hpp"

namespace anabranch {

double multiply_adds_avx512_bf16(int64_t rounds) {
  return detail::multiply_add_rounds<avx512_bf16::Bfloat16PairLanes, 24>(rounds, 0x3f003f00u /* two bfloat16 */);
}

}  // namespace anabranch
