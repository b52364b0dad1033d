#include "anabranch/mixers/matrix_kernels_cpu.hpp"

namespace anabranch {
template MatrixKernels<float> matrix_kernels_for<CpuIsa::avx2, float>();
}  // namespace anabranch
