#include "anabranch/mixers/matrix_kernels_cpu.hpp"

namespace anabranch {
template MatrixKernels<float> matrix_kernels_for<CpuIsa::portable, float>();
template MatrixKernels<double> matrix_kernels_for<CpuIsa::portable, double>();
}  // namespace anabranch
