#include "anabranch/core/gemm_lanes_avx2.hpp"
#include "anabranch/core/gemm_stored.hpp"

namespace anabranch {

void gemm_avx2(const detail::GemmArguments<float>& arguments) { detail::gemm_tile<avx2::FloatLanes>(arguments); }
void gemm_avx2(const detail::GemmArguments<double>& arguments) { detail::gemm_tile<avx2::DoubleLanes>(arguments); }
void gemm_avx2(const detail::GemmArguments<bfloat16>& arguments) { detail::gemm_tile<avx2::FloatLanes>(arguments); }
void gemm_avx2(const detail::GemmArguments<half>& arguments) { detail::gemm_tile<avx2::FloatLanes>(arguments); }

}  // namespace anabranch
