#include "anabranch/experts/row_kernels_cpu.hpp"

namespace anabranch {
ANABRANCH_ROW_KERNELS(CpuIsa::avx2, )
}  // namespace anabranch
