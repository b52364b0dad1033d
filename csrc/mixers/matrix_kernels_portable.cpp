#include "anabranch/mixers/matrix_kernels_cpu.hpp"

namespace anabranch {
ANABRANCH_MATRIX_KERNELS(CpuIsa::portable, )
}  // namespace anabranch
