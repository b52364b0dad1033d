#include "anabranch/temporal/row_sum_kernels.hpp"

namespace anabranch {
ANABRANCH_ROW_SUM_KERNELS(CpuIsa::avx2, )
}  // namespace anabranch
