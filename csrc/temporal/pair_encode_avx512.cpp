#include "anabranch/temporal/pair_encode_kernels.hpp"

namespace anabranch {
ANABRANCH_PAIR_ENCODE_KERNELS(CpuIsa::avx512, )
}  // namespace anabranch
