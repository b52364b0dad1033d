// gemm(): hands a tile to the kernels of the instruction set in use.
#include <cstring>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/gemm_cpu.hpp"

namespace anabranch {

namespace {

template <class T>
void run(const detail::GemmArguments<T>& arguments) {
#if defined(__x86_64__)
  switch (cpu_isa()) {
    case CpuIsa::avx512_bf16:
      if constexpr (std::is_same_v<T, bfloat16>) return gemm_avx512_bf16(arguments);
      [[fallthrough]];
    case CpuIsa::avx512:
      return gemm_avx512(arguments);
    case CpuIsa::avx2:
      return gemm_avx2(arguments);
    case CpuIsa::portable:
      break;
  }
#endif
  gemm_portable(arguments);
}

}  // namespace

template <class T>
void gemm(int64_t m, int64_t n, int64_t k, const GemmOperand<T>& a, const GemmOperand<T>& b, accumulate_t<T>* c,
          int64_t c_stride, bool accumulate, void* workspace) {
  if (m <= 0 || n <= 0) return;
  if (k <= 0) {
    if (!accumulate)
      for (int64_t i = 0; i < m; ++i) std::memset(c + i * c_stride, 0, n * sizeof(*c));
    return;
  }
  run(detail::GemmArguments<T>{m, n, k, a, b, c, c_stride, accumulate, workspace});
}

template <class T>
void gemm_stored(int64_t m, int64_t n, int64_t k, const GemmOperand<T>& a, const GemmOperand<T>& b, T* out,
                 int64_t out_stride, void* workspace) {
  run(detail::GemmArguments<T>{m, n, k, a, b, nullptr, 0, false, workspace, out, out_stride});
}

ANABRANCH_GEMM_STORED(float, )
ANABRANCH_GEMM_STORED(double, )
ANABRANCH_GEMM_STORED(bfloat16, )
ANABRANCH_GEMM_STORED(half, )
template void gemm<float>(int64_t, int64_t, int64_t, const GemmOperand<float>&, const GemmOperand<float>&, float*,
                          int64_t, bool, void*);
template void gemm<double>(int64_t, int64_t, int64_t, const GemmOperand<double>&, const GemmOperand<double>&, double*,
                           int64_t, bool, void*);
template void gemm<bfloat16>(int64_t, int64_t, int64_t, const GemmOperand<bfloat16>&, const GemmOperand<bfloat16>&,
                             float*, int64_t, bool, void*);
template void gemm<half>(int64_t, int64_t, int64_t, const GemmOperand<half>&, const GemmOperand<half>&, float*, int64_t,
                         bool, void*);

}  // namespace anabranch
