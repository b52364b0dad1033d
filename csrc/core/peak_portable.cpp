#include "anabranch/core/gemm_lanes_portable.hpp"
#include "anabranch/core/peak.hpp"
#include "anabranch/core/peak_loop.hpp"

namespace anabranch {

double multiply_adds_portable(int64_t rounds) {
  return detail::multiply_add_rounds<portable::FloatLanes, 12>(rounds, 0.5f);
}

}  // namespace anabranch
