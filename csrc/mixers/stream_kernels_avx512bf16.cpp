// GCC 12 takes the undefined pass-through operands inside its own AVX-512 header for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "anabranch/mixers/stream_kernels_cpu.hpp"

namespace anabranch {
template StreamKernels<bfloat16> stream_kernels_for<CpuIsa::avx512_bf16, bfloat16>();
}  // namespace anabranch
