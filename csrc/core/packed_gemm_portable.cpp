#include "anabranch/core/gemm_lanes_portable.hpp"
#include "anabranch/core/packed_gemm_driver.hpp"

namespace anabranch {

ANABRANCH_DEFINE_PACKED_GEMMS(CpuIsa::portable, portable::FloatLanes, portable::DoubleLanes)

}  // namespace anabranch
