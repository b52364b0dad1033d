// GCC 12 takes the undefined pass-through operands inside its own AVX-512 header for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "anabranch/core/gemm_lanes_avx512.hpp"
#include "anabranch/core/peak.hpp"
#include "anabranch/core/peak_loop.hpp"

namespace anabranch {

double multiply_adds_avx512(int64_t rounds) {
  return detail::multiply_add_rounds<avx512::FloatLanes, 24>(rounds, 0.5f);
}

}  // namespace anabranch
