#include "anabranch/core/gemm_lanes_avx2.hpp"
#include "anabranch/core/peak.hpp"
#include "anabranch/core/peak_loop.hpp"

namespace anabranch {

double multiply_adds_avx2(int64_t rounds) { return detail::multiply_add_rounds<avx2::FloatLanes, 12>(rounds, 0.5f); }

}  // namespace anabranch
