#include "anabranch/mixers/matrix_kernels_cpu.hpp"

namespace anabranch {
template MatrixKernels<float> matrix_kernels_for<CpuIsa::avx512, float>();
}  // namespace anabranch
