#include "anabranch/mixers/stream_kernels_cpu.hpp"

namespace anabranch {
ANABRANCH_STREAM_KERNELS(CpuIsa::portable, )
}  // namespace anabranch
