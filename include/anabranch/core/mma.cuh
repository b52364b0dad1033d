// A warp's matrix product of 16-bit fragments from registers (mma.sync, sm_80): c [16, 8] += a [16, 16] b [16, 8].
//
// With g = lane / 4 and q = lane % 4, a register holds two neighbours along k, the lower in the lower half:
//   a[0], a[1]: rows g and g + 8, k = 2q, 2q + 1       a[2], a[3]: the same rows, k = 2q + 8, 2q + 9
//   b[0], b[1]: column g, k = 2q, 2q + 1 and 2q + 8, 2q + 9
//   c[0], c[1]: row g, columns 2q and 2q + 1           c[2], c[3]: row g + 8
// Which of the operands' numbers a k stands for is the caller's choice, as long as a and b agree.
#pragma once

#include "anabranch/core/fragment.cuh"

namespace anabranch {

#if defined(__CUDACC__)

__device__ __forceinline__ void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#else

inline void mma_bfloat16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const int lane = simt::lane(), g = lane / 4, q = lane % 4;
  for (int from = 0; from < 4; ++from) {
    for (int half_k = 0; half_k < 2; ++half_k) {
      for (int column = 0; column < 2; ++column) {
        const auto right = unpack_pair<bfloat16>(__shfl_sync(kAllLanes, b[half_k], (2 * q + column) * 4 + from));
        for (int row = 0; row < 2; ++row) {
          const auto left = unpack_pair<bfloat16>(__shfl_sync(kAllLanes, a[2 * half_k + row], 4 * g + from));
          c[2 * row + column] += left.first * right.first + left.second * right.second;
        }
      }
    }
  }
}

#endif

}  // namespace anabranch
