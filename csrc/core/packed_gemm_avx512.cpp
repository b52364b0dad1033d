// GCC 12 takes the undefined pass-through operands inside its own AVX-512 header for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "anabranch/core/gemm_lanes_avx512.hpp"
#include "anabranch/core/packed_gemm_driver.hpp"

namespace anabranch {

ANABRANCH_DEFINE_PACKED_GEMMS(CpuIsa::avx512, avx512::FloatLanes, avx512::DoubleLanes)

}  // namespace anabranch
