#include "anabranch/temporal/pair_encode_kernels.hpp"

namespace anabranch {
ANABRANCH_PAIR_ENCODE_KERNELS(CpuIsa::avx2, )
}  // namespace anabranch
