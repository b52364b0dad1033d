#include "anabranch/temporal/recent_neighbors_kernels.hpp"

namespace anabranch {
template RecentKernels recent_kernels_for<CpuIsa::avx2>(int64_t k, int64_t capacity);
}  // namespace anabranch
