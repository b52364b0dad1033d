// The streams' gradient, and the weight's, on a block of channels of some tokens: the weight's block is in L1 while all
// tokens of a group pass by.
#pragma once

#include "anabranch/core/row_lanes_cpu.hpp"
#include "anabranch/mixers/stream_kernels.hpp"

namespace anabranch::detail {

/// What all kernels on rows share.
template <CpuIsa isa, class T>
struct RowLoops {
  using Row = RowLanes<isa, T>;
  using Sum = typename Row::Sum;
  using Sums = RowLanes<isa, Sum>;
  using Vector = typename Row::Vector;
  static constexpr int width = Row::width;

  /// Calls f(c, count) for the vectors of [0, channels): count is `width`, as a constant, but for the last.
  template <class F>
  [[gnu::always_inline]] static void for_each_vector(int64_t channels, const F& f) {
    int64_t c = 0;
    for (; c + width <= channels; c += width) f(c, std::integral_constant<int64_t, width>{});
    if (c < channels) f(c, channels - c);
  }

  /// Whether every row of `to` is cache lines, which may be written past the caches.
  static bool has_whole_lines(const StreamShape& shape, const T* to) {
    return reinterpret_cast<uintptr_t>(to) % 64 == 0 && shape.channels % (64 / sizeof(T)) == 0;
  }
};

template <CpuIsa isa, class T>
struct PreBackwardLoops : RowLoops<isa, T> {
  using Base = RowLoops<isa, T>;
  using Row = typename Base::Row;
  using Sum = typename Base::Sum;
  using Sums = typename Base::Sums;
  using Vector = typename Base::Vector;
  using Base::for_each_vector, Base::has_whole_lines, Base::width;

  /// sums [tokens, kChannelBlock] += dproducts * weight of one stream, kLogitBlock logits at a time.
  static void add_products(int64_t tokens, int64_t logits, const Sum* dproducts, int64_t stride, const Sum* weight,
                           Sum* sums) {
    for (int64_t k = 0; k < logits; k += kLogitBlock) {
      for (int64_t c = 0; c < kChannelBlock; c += 2 * width) {
        Vector w[kLogitBlock][2];
        for (int b = 0; b < kLogitBlock; ++b) {
          for (int v = 0; v < 2; ++v) w[b][v] = Sums::load(weight + (k + b) * kChannelBlock + c + v * width);
        }
        for (int64_t t = 0; t < tokens; ++t) {
          const Sum* g = dproducts + t * stride + k;
          Sum* to = sums + t * kChannelBlock + c;
          Vector low = Sums::load(to), high = Sums::load(to + width);
          for (int b = 0; b < kLogitBlock; ++b) low += g[b] * w[b][0], high += g[b] * w[b][1];
          Sums::store(to, low);
          Sums::store(to + width, high);
        }
      }
    }
  }

  /// dweight [logits, kChannelBlock] += dproducts^T * x [tokens, kChannelBlock].
  static void add_weight_gradient(int64_t tokens, int64_t logits, const Sum* dproducts, int64_t stride, const Sum* x,
                                  Sum* dweight) {
    for (int64_t k = 0; k < logits; k += kLogitBlock) {
      for (int64_t c = 0; c < kChannelBlock; c += 2 * width) {
        Vector w[kLogitBlock][2];
        for (int b = 0; b < kLogitBlock; ++b) {
          for (int v = 0; v < 2; ++v) w[b][v] = Sums::load(dweight + (k + b) * kChannelBlock + c + v * width);
        }
        for (int64_t t = 0; t < tokens; ++t) {
          const Sum *g = dproducts + t * stride + k, *from = x + t * kChannelBlock + c;
          const Vector low = Sums::load(from), high = Sums::load(from + width);
          for (int b = 0; b < kLogitBlock; ++b) w[b][0] += g[b] * low, w[b][1] += g[b] * high;
        }
        for (int b = 0; b < kLogitBlock; ++b) {
          for (int v = 0; v < 2; ++v) Sums::store(dweight + (k + b) * kChannelBlock + c + v * width, w[b][v]);
        }
      }
    }
  }

  [[gnu::always_inline]] static void prefetch_row(const T* row) {
    for (std::size_t line = 0; line < kChannelBlock * sizeof(T); line += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(row) + line);
    }
  }

  /// The streams of one token as sums, and their gradient without the products' part, at `x` and `dx` of every stream.
  template <int n>
  [[gnu::always_inline]] static void start_gradient(const PreBackwardBlock<T>& block, int64_t t, Sum* x, Sum* dx) {
    const int64_t channels = block.shape.channels, at = t * n * channels + block.begin;
    const int64_t segments = block.per_segment ? n : 1;
    const Sum *reads = block.reads + t * n * (n + 2), *h = block.coefficients + t * n * (n + 2) + 2 * n;
    const T *const from = block.x + at, *const dnext = block.dnext ? block.dnext + at : nullptr;
    const T* const given = block.dx_given ? block.dx_given + at : nullptr;
    const T* const du = block.du ? block.du + t * channels + block.begin : nullptr;
    // A block's rows lie a token apart, where no prefetcher of the processor looks for them.
    const int64_t ahead = block.ahead_tokens * channels, more = block.ahead_channels;
    for (int j = 0; j < n; ++j) {
      prefetch_row(from + j * channels + n * ahead + more);
      if (dnext) prefetch_row(dnext + j * channels + n * ahead + more);
      if (given) prefetch_row(given + j * channels + n * ahead + more);
    }
    if (du) prefetch_row(du + ahead + more);
    Sum slopes[n] = {}, means[n] = {};
    for (int j = 0; block.logits && j < n; ++j) {
      slopes[j] = block.slopes[t * segments + (block.per_segment ? j : 0)];
      means[j] = block.means[t * segments + (block.per_segment ? j : 0)];
    }
    for_each_vector(block.count, [&](int64_t c, auto left) __attribute__((always_inline)) {
      Vector read{}, next[n] = {};
      if (du) read = Row::load(du + c, left);
      for (int i = 0; dnext && i < n; ++i) next[i] = Row::load(dnext + i * channels + c, left);
      for (int j = 0; j < n; ++j) {
        const Vector value = Row::load(from + j * channels + c, left);
        Vector sum = slopes[j] * (means[j] - value) + reads[j] * read;
        for (int i = 0; i < n; ++i) sum += h[i * n + j] * next[i];
        if (given) sum += Row::load(given + j * channels + c, left);
        Sums::store(x + j * kStreamScratch + c, value);
        Sums::store(dx + j * kStreamScratch + c, sum);
      }
    });
  }

  template <int n>
  static void run(const PreBackwardBlock<T>& block) {
    const int64_t channels = block.shape.channels, tokens = block.shape.tokens;
    const int64_t stride = (block.per_segment ? n : 1) * block.logits;
    Sum *const x = block.scratch, *const dx = x + n * kStreamScratch;
    for (int64_t t = 0; t < tokens; ++t) start_gradient<n>(block, t, x + t * kChannelBlock, dx + t * kChannelBlock);
    for (int j = 0; j < n; ++j) {
      const Sum* const dproducts = block.dproducts + (block.per_segment ? j * block.logits : 0);
      const int64_t piece = j * block.logits * kChannelBlock;
      Sum *const own_x = x + j * kStreamScratch, *const own_dx = dx + j * kStreamScratch;
      if (block.dx) add_products(tokens, block.logits, dproducts, stride, block.weight + piece, own_dx);
      if (block.dweight) add_weight_gradient(tokens, block.logits, dproducts, stride, own_x, block.dweight + piece);
      for (int64_t t = 0; block.dx && t < tokens; ++t) {
        T* const to = block.dx + (t * n + j) * channels + block.begin;
        const Sum* const from = own_dx + t * kChannelBlock;
        if (block.streaming && has_whole_lines(block.shape, block.dx)) {
          for (int64_t c = 0; c < block.count; c += width) Row::store_streaming(to + c, Sums::load(from + c));
        } else {
          for_each_vector(block.count, [&](int64_t c, auto left) __attribute__((always_inline)) {
            Row::store(to + c, Sums::load(from + c), left);
          });
        }
      }
    }
    if (block.streaming) Row::end_streaming();
  }
};

}  // namespace anabranch::detail
