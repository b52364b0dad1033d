// GCC 12 takes the undefined pass-through operands inside its own AVX-512 header for uninitialised variables.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include "anabranch/mixers/stream_kernels_cpu.hpp"

namespace anabranch {
ANABRANCH_STREAM_KERNELS(CpuIsa::avx512, )
}  // namespace anabranch
