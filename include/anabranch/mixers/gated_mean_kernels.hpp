// The gated mean of one token as plain loops that the compiler vectorises; csrc/mixers/gated_mean_<isa>.cpp compiles
// them once with its flags.
//
// Everything is a template on the instruction set, or always inlined, so that no copy compiled with AVX-512 can be the
// one the linker keeps for an older machine. float uses an exp of its own, since a call to libm would stop the
// vectoriser.
#pragma once

#include "anabranch/core/vector_exp.hpp"
#include "anabranch/mixers/gated_mean_cpu.hpp"

namespace anabranch::detail {

template <CpuIsa isa, class T>
struct GatedMeanLoops {
  using Sum = accumulate_t<T>;

  [[gnu::always_inline]] static Sum gate(T logit) {
    if constexpr (std::is_same_v<Sum, float>) {
      return 1.0f / (1.0f + vector_exp(-static_cast<float>(logit)));
    } else {
      return 1 / (1 + std::exp(-static_cast<Sum>(logit)));
    }
  }

  static void forward(int64_t streams, int64_t channels, const T* __restrict x, const T* __restrict logits,
                      T* __restrict u) {
    constexpr int64_t block = 256;  // channels whose sums stay in the first cache
    const Sum share = Sum(1) / static_cast<Sum>(streams);
    Sum sums[block];
    for (int64_t first = 0; first < channels; first += block) {
      const int64_t count = channels - first < block ? channels - first : block;
      for (int64_t c = 0; c < count; ++c) sums[c] = gate(logits[first + c]) * static_cast<Sum>(x[first + c]);
      for (int64_t j = 1; j < streams; ++j) {
        const T* __restrict row = x + j * channels + first;
        const T* __restrict row_logits = logits + j * channels + first;
        for (int64_t c = 0; c < count; ++c) sums[c] += gate(row_logits[c]) * static_cast<Sum>(row[c]);
      }
      for (int64_t c = 0; c < count; ++c) u[first + c] = T(share * sums[c]);
    }
  }

  static void backward(int64_t streams, int64_t channels, const T* __restrict du, const T* __restrict x,
                       const T* __restrict logits, T* __restrict dx, T* __restrict dlogits) {
    const Sum share = Sum(1) / static_cast<Sum>(streams);
    for (int64_t j = 0; j < streams; ++j) {
      const int64_t row = j * channels;
      if (dx && dlogits) {
        for (int64_t c = 0; c < channels; ++c) {
          const Sum g = gate(logits[row + c]), d = share * static_cast<Sum>(du[c]);
          dx[row + c] = T(d * g);
          dlogits[row + c] = T(d * static_cast<Sum>(x[row + c]) * g * (1 - g));
        }
      } else if (dx) {
        for (int64_t c = 0; c < channels; ++c) dx[row + c] = T(share * static_cast<Sum>(du[c]) * gate(logits[row + c]));
      } else {
        for (int64_t c = 0; c < channels; ++c) {
          const Sum g = gate(logits[row + c]);
          dlogits[row + c] = T(share * static_cast<Sum>(du[c]) * static_cast<Sum>(x[row + c]) * g * (1 - g));
        }
      }
    }
  }
};

}  // namespace anabranch::detail

namespace anabranch {

template <CpuIsa isa, class T>
GatedMeanKernels<T> gated_mean_kernels_for() {
  using Loops = detail::GatedMeanLoops<isa, T>;
  return {Loops::forward, Loops::backward};
}

}  // namespace anabranch
