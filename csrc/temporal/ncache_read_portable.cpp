#include "anabranch/temporal/ncache_read_kernels.hpp"

namespace anabranch {
ANABRANCH_NCACHE_READ_KERNELS(CpuIsa::portable, )
}  // namespace anabranch
