#include "anabranch/mixers/stream_kernels_cpu.hpp"

namespace anabranch {
ANABRANCH_STREAM_KERNELS(CpuIsa::avx2, )
}  // namespace anabranch
