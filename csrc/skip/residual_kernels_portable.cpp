#include "anabranch/skip/residual_kernels_cpu.hpp"

namespace anabranch {
ANABRANCH_RESIDUAL_KERNELS(CpuIsa::portable, )
}  // namespace anabranch
