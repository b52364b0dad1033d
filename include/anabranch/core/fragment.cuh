// Sums of a wgmma on their way to memory: rounded in pairs, and exchanged so that a thread holds 16 bytes of one row.
//
// The four lanes of a quad hold the same row: in each 8 columns, lane q has columns 2q and 2q + 1. Over four such
// groups of columns that is a 4 x 4 matrix of pairs, and its transpose gives lane q all 8 columns of group q. A quad
// then writes 64 bytes in a row where it would have written 16.
#pragma once

#include <cmath>

#include "anabranch/core/scalar.hpp"
#include "anabranch/core/simt.cuh"

namespace anabranch {

struct Pair {
  float first, second;
};

#if defined(__CUDACC__)

template <class T>
__device__ __forceinline__ uint32_t pack_pair(Pair pair) {
  uint32_t packed;
  if constexpr (std::is_same_v<T, bfloat16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(pair.second), "f"(pair.first));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(pair.second), "f"(pair.first));
  }
  return packed;
}

template <class T>
__device__ __forceinline__ Pair unpack_pair(uint32_t packed) {
  if constexpr (std::is_same_v<T, bfloat16>) {
    return {__uint_as_float(packed << 16), __uint_as_float(packed & 0xffff0000u)};
  } else {
    Pair pair;
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %2;\ncvt.f32.f16 %0, low;\ncvt.f32.f16 %1, high;\n}"
        : "=f"(pair.first), "=f"(pair.second)
        : "r"(packed));
    return pair;
  }
}

/// 1 / (1 + exp(-x)) to a few units of float's last place: the result is rounded to 16 bits soon after.
__device__ __forceinline__ float fast_sigmoid(float x) {
  float power, sigmoid;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(sigmoid) : "f"(1.0f + power));
  return sigmoid;
}

#else

template <class T>
uint32_t pack_pair(Pair pair) {
  return static_cast<uint32_t>(T(pair.first).bits) | static_cast<uint32_t>(T(pair.second).bits) << 16;
}
template <class T>
Pair unpack_pair(uint32_t packed) {
  return {static_cast<float>(detail::bits_to<T>(static_cast<uint16_t>(packed))),
          static_cast<float>(detail::bits_to<T>(static_cast<uint16_t>(packed >> 16)))};
}
inline float fast_sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

#endif

/// One instruction, where scalar.hpp's conversion from half is the portable one.
template <class T>
__device__ __forceinline__ float widen(T value) {
  return unpack_pair<T>(value.bits).first;
}

/// pairs[g] of lane q changes places with pairs[q] of lane g, in every quad. All lanes of the warp call it.
__device__ __forceinline__ void quad_transpose(uint32_t (&pairs)[4]) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto exchange = [&](uint32_t& low, uint32_t& high, int distance) {
    const bool upper = (lane & distance) != 0;
    const uint32_t received = __shfl_xor_sync(kAllLanes, upper ? low : high, distance);
    low = upper ? received : low;
    high = upper ? high : received;
  };
  exchange(pairs[0], pairs[1], 1);
  exchange(pairs[2], pairs[3], 1);
  exchange(pairs[0], pairs[2], 2);
  exchange(pairs[1], pairs[3], 2);
}

/// Of 8 elements, zeroes those from `count` on; none remain if it is not positive.
__device__ __forceinline__ void keep_first(uint32_t (&pairs)[4], int count) {
#pragma unroll
  for (int g = 0; g < 4; ++g) pairs[g] &= count > 2 * g + 1 ? 0xffffffffu : count > 2 * g ? 0xffffu : 0u;
}

/// 8 elements of a row in memory, as four pairs.
template <class T>
__device__ __forceinline__ void store_pairs(T* to, const uint32_t (&pairs)[4]) {
  *reinterpret_cast<uint4*>(to) = uint4{pairs[0], pairs[1], pairs[2], pairs[3]};
}
template <class T>
__device__ __forceinline__ void load_pairs(const T* from, uint32_t (&pairs)[4]) {
  const uint4 loaded = *reinterpret_cast<const uint4*>(from);
  pairs[0] = loaded.x, pairs[1] = loaded.y, pairs[2] = loaded.z, pairs[3] = loaded.w;
}

}  // namespace anabranch
