#include "anabranch/mixers/gated_mean_kernels.hpp"

namespace anabranch {
ANABRANCH_GATED_MEAN_KERNELS(CpuIsa::avx2, )
}  // namespace anabranch
