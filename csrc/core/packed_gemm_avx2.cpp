#include "anabranch/core/gemm_lanes_avx2.hpp"
#include "anabranch/core/packed_gemm_driver.hpp"

namespace anabranch {

ANABRANCH_DEFINE_PACKED_GEMMS(CpuIsa::avx2, avx2::FloatLanes, avx2::DoubleLanes)

}  // namespace anabranch
