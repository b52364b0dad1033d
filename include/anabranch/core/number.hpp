// What the arithmetic of small matrices asks of a number, given for float and double.
//
// Everything between logits and coefficients is written once, for a number type V: float or double is one matrix (a
// thread of the GPU, or the definition), Lanes<isa, float> (lanes_cpu.hpp) is sixteen of them side by side. So there
// are no branches on values: select() and any() take their place.
//
// ANABRANCH_MATRIX_FUNCTION marks templates on V. They need not be inlined: V names the instruction set.
#pragma once

#include <cmath>

#include "anabranch/core/scalar.hpp"

// On the GPU a loop over a matrix is unrolled where registers hold what it indexes (ANABRANCH_UNROLL), else it stays a
// loop over local memory (ANABRANCH_ROLLED always does): left to choose, nvcc unrolls all of them, spills, and takes
// five times as long. The CPU's compilers choose well.
#if defined(__CUDACC__)
#define ANABRANCH_UNROLL _Pragma("unroll (n * sizeof(V) <= 16 ? 8 : 1)")
#define ANABRANCH_ROLLED _Pragma("unroll 1")
#define ANABRANCH_MATRIX_FUNCTION __host__ __device__
#define ANABRANCH_ONCE __host__ __device__ __noinline__
#else
#define ANABRANCH_UNROLL
#define ANABRANCH_ROLLED
#define ANABRANCH_MATRIX_FUNCTION
#define ANABRANCH_ONCE ANABRANCH_HOST_DEVICE
#endif

namespace anabranch::detail {

ANABRANCH_HOST_DEVICE inline float exp_of(float x) { return ::expf(x); }
ANABRANCH_ONCE inline double exp_of(double x) { return ::exp(x); }
ANABRANCH_HOST_DEVICE inline float log_of(float x) { return ::logf(x); }
ANABRANCH_ONCE inline double log_of(double x) { return ::log(x); }
ANABRANCH_HOST_DEVICE inline float sqrt_of(float x) { return ::sqrtf(x); }
ANABRANCH_HOST_DEVICE inline double sqrt_of(double x) { return ::sqrt(x); }

ANABRANCH_HOST_DEVICE inline float select(bool mask, float yes, float no) { return mask ? yes : no; }
ANABRANCH_HOST_DEVICE inline double select(bool mask, double yes, double no) { return mask ? yes : no; }
ANABRANCH_HOST_DEVICE inline bool any(bool mask) { return mask; }

/// The number type in which the exact projection runs: double has the digits that a tolerance of 1e-6 needs where
/// logits differ by tens. A V is `parts` of them.
template <class V>
struct WideNumber {
  using type = double;
  static constexpr int parts = 1;
  ANABRANCH_HOST_DEVICE static double get(V value, int) { return static_cast<double>(value); }
  ANABRANCH_HOST_DEVICE static void set(V& value, int, double part) { value = static_cast<V>(part); }
};

template <class V>
ANABRANCH_HOST_DEVICE inline V max_of(V a, V b) {
  return select(a > b, a, b);
}
template <class V>
ANABRANCH_HOST_DEVICE inline V min_of(V a, V b) {
  return select(a < b, a, b);
}
template <class V>
ANABRANCH_HOST_DEVICE inline V abs_of(V a) {
  return max_of(a, V(0) - a);
}
template <class V>
ANABRANCH_HOST_DEVICE inline V sigmoid_of(V x) {
  return V(1) / (V(1) + exp_of(V(0) - x));
}
/// 1 - 2 / (e^2x + 1), from the side on which nothing is lost.
template <class V>
ANABRANCH_HOST_DEVICE inline V tanh_of(V x) {
  const V e = exp_of(V(-2) * abs_of(x)), t = (V(1) - e) / (V(1) + e);
  return select(x < V(0), V(0) - t, t);
}

}  // namespace anabranch::detail
