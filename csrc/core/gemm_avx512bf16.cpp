// GCC 12 takes the undefined pass-through operands inside its own AVX-512 header for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "anabranch/core/gemm_lanes_avx512bf16.hpp"
#include "anabranch/core/gemm_stored.hpp"

namespace anabranch {

void gemm_avx512_bf16(const detail::GemmArguments<bfloat16>& arguments) {
  detail::gemm_tile<avx512_bf16::Bfloat16PairLanes>(arguments);
}

}  // namespace anabranch
