#include "anabranch/mixers/stream_kernels_cpu.hpp"

namespace anabranch {
ANABRANCH_STREAM_KERNELS(CpuIsa::portable, )
template StreamKernels<double> stream_kernels_for<CpuIsa::portable, double>();
}  // namespace anabranch
