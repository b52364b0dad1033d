// GCC 12 takes the undefined pass-through operands inside its own AVX-512 header for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "anabranch/core/gemm_lanes_avx512.hpp"
#include "anabranch/core/gemm_stored.hpp"

namespace anabranch {

void gemm_avx512(const detail::GemmArguments<float>& arguments) { detail::gemm_tile<avx512::FloatLanes>(arguments); }
void gemm_avx512(const detail::GemmArguments<double>& arguments) { detail::gemm_tile<avx512::DoubleLanes>(arguments); }
void gemm_avx512(const detail::GemmArguments<bfloat16>& arguments) { detail::gemm_tile<avx512::FloatLanes>(arguments); }
void gemm_avx512(const detail::GemmArguments<half>& arguments) { detail::gemm_tile<avx512::FloatLanes>(arguments); }

}  // namespace anabranch
