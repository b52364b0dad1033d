// The stream kernels; each stream_kernels_<isa>.cpp compiles them once.
//
// All loops run over the channels of one token at a time, a vector after another, so memory is read in order; only
// pre_backward goes through a block of channels of several tokens, for which a block of the weight is in L1. Everything
// is a template on the instruction set.
#pragma once

#include "anabranch/mixers/row_lanes_cpu.hpp"
#include "anabranch/mixers/stream_kernels.hpp"

namespace anabranch::detail {

template <CpuIsa isa, class T>
struct StreamLoops {
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

  static void widen(int64_t count, const T* from, Sum* to) {
    for_each_vector(count, [&](int64_t c, auto left) __attribute__((always_inline)) {
      Sums::store(to + c, Row::load(from + c, left), left);
    });
  }

  static void moments(int64_t rows, int64_t row_width, const T* x, double eps, bool centered, Sum* to, int64_t stride) {
    for (int64_t row = 0; row < rows; ++row, x += row_width, to += stride) {
      Sum mean = 0;
      if (centered) {
        Vector sum{};
        for_each_vector(row_width,
                        [&](int64_t c, auto left) __attribute__((always_inline)) { sum += Row::load(x + c, left); });
        mean = Row::reduce(sum) / static_cast<Sum>(row_width);
      }
      Vector squares[4] = {};  // independent sums, so that additions do not wait for each other
      int64_t c = 0;
      for (; c + 4 * width <= row_width; c += 4 * width) {
        for (int k = 0; k < 4; ++k) {
          const Vector value = Row::load(x + c + k * width) - mean;
          squares[k] += value * value;
        }
      }
      for (; c < row_width; c += width) {
        Vector value = Row::load(x + c, row_width - c) - mean;
        for (int64_t l = row_width - c; l < width; ++l) value[l] = 0;
        squares[0] += value * value;
      }
      const Sum square = Row::reduce((squares[0] + squares[1]) + (squares[2] + squares[3]));
      to[0] = 1 / std::sqrt(square / static_cast<Sum>(row_width) + static_cast<Sum>(eps));
      to[1] = mean;
    }
  }

  template <int n>
  static void pre_of(const StreamShape& shape, const T* x, const Sum* coefficients, T* u) {
    const int64_t channels = shape.channels;
    for (int64_t t = 0; t < shape.tokens; ++t, x += n * channels, u += channels, coefficients += n * (n + 2)) {
      for_each_vector(channels, [&](int64_t c, auto left) __attribute__((always_inline)) {
        Vector sum = coefficients[0] * Row::load(x + c, left);
        for (int j = 1; j < n; ++j) sum += coefficients[j] * Row::load(x + j * channels + c, left);
        Row::store(u + c, sum, left);
      });
    }
  }

  /// Whether every row of `to` is cache lines, which may be written past the caches.
  static bool has_whole_lines(const StreamShape& shape, const T* to) {
    return reinterpret_cast<uintptr_t>(to) % 64 == 0 && shape.channels % (64 / sizeof(T)) == 0;
  }

  template <int n, bool streaming>
  static void post_of(const StreamShape& shape, const T* x, const T* y, const Sum* coefficients, T* out, T* cached) {
    const int64_t channels = shape.channels, step = n * channels;
    for (int64_t t = 0; t < shape.tokens; ++t, x += step, out += step, y += channels, coefficients += n * (n + 2)) {
      const Sum *q = coefficients + n, *h = q + n;
      T* const copy = cached ? cached + t * step : nullptr;
      for_each_vector(channels, [&](int64_t c, auto left) __attribute__((always_inline)) {
        Vector from[n];
        for (int j = 0; j < n; ++j) from[j] = Row::load(x + j * channels + c, left);
        const Vector written = Row::load(y + c, left);
        for (int i = 0; i < n; ++i) {
          Vector sum = q[i] * written;
          for (int j = 0; j < n; ++j) sum += h[i * n + j] * from[j];
          if constexpr (streaming) {
            Row::store_streaming(out + i * channels + c, sum);
          } else {
            Row::store(out + i * channels + c, sum, left);
          }
          if (copy) Row::store(copy + i * channels + c, sum, left);
        }
      });
    }
  }

  /// Rows `first` .. first + rows of the coefficients' gradient of one token.
  template <int n, int rows>
  [[gnu::always_inline]] static void coefficient_dots(int first, int64_t channels, const T* dout, const T* x,
                                                      const T* y, Sum* dq, Sum* dh) {
    Vector sums[rows][n + 1] = {};
    for_each_vector(channels, [&](int64_t c, auto left) __attribute__((always_inline)) {
      Vector d[rows];
      for (int i = 0; i < rows; ++i) d[i] = Row::load(dout + (first + i) * channels + c, left);
      for (int j = 0; j <= n; ++j) {
        const Vector with = Row::load((j < n ? x + j * channels : y) + c, left);
        for (int i = 0; i < rows; ++i) sums[i][j] += d[i] * with;
      }
    });
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < n; ++j) dh[(first + i) * n + j] = Row::reduce(sums[i][j]);
      dq[first + i] = Row::reduce(sums[i][n]);
    }
  }

  template <int n>
  static void post_backward_of(const StreamShape& shape, const T* dout, const T* x, const T* y, const Sum* coefficients,
                               const StreamPostGradients<T>& gradients) {
    constexpr int rows = n <= 4 ? n : n == 5 ? 3 : 2;  // what registers hold of rows * (n + 1) sums
    const int64_t channels = shape.channels, step = n * channels;
    for (int64_t t = 0; t < shape.tokens; ++t, dout += step, x += step, y += channels, coefficients += n * (n + 2)) {
      const Sum *q = coefficients + n, *h = q + n;
      if (gradients.dcoefficients) {
        Sum *const to = gradients.dcoefficients + t * n * (n + 2), *const dq = to + n, *const dh = dq + n;
        for (int j = 0; j < n; ++j) to[j] = 0;
        int first = 0;
        for (; first + rows <= n; first += rows) coefficient_dots<n, rows>(first, channels, dout, x, y, dq, dh);
        for (; first < n; ++first) coefficient_dots<n, 1>(first, channels, dout, x, y, dq, dh);
      }
      if (!gradients.x && !gradients.y) continue;
      T* const dy = gradients.y ? gradients.y + t * channels : nullptr;
      T* const dx = gradients.x ? gradients.x + t * step : nullptr;
      for_each_vector(channels, [&](int64_t c, auto left) __attribute__((always_inline)) {
        Vector d[n];
        for (int i = 0; i < n; ++i) d[i] = Row::load(dout + i * channels + c, left);
        if (dy) {
          Vector sum = q[0] * d[0];
          for (int i = 1; i < n; ++i) sum += q[i] * d[i];
          Row::store(dy + c, sum, left);
        }
        for (int j = 0; dx && j < n; ++j) {
          Vector sum = h[j] * d[0];
          for (int i = 1; i < n; ++i) sum += h[i * n + j] * d[i];
          Row::store(dx + j * channels + c, sum, left);
        }
      });
    }
  }

  template <int n>
  static void read_dots_of(const StreamShape& shape, const T* du, const T* x, Sum* dp) {
    const int64_t channels = shape.channels;
    for (int64_t t = 0; t < shape.tokens; ++t, du += channels, x += n * channels, dp += n * (n + 2)) {
      Vector sums[n] = {};
      for_each_vector(channels, [&](int64_t c, auto left) __attribute__((always_inline)) {
        const Vector d = Row::load(du + c, left);
        for (int j = 0; j < n; ++j) sums[j] += d * Row::load(x + j * channels + c, left);
      });
      for (int j = 0; j < n; ++j) dp[j] = Row::reduce(sums[j]);
    }
  }

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
  static void pre_backward_of(const PreBackwardBlock<T>& block) {
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
  }

  static void pre(const StreamShape& shape, const T* x, const Sum* coefficients, T* u) {
    dispatch_streams(shape.streams, [&]<int n>() { pre_of<n>(shape, x, coefficients, u); });
  }
  static void post(const StreamShape& shape, const T* x, const T* y, const Sum* coefficients, T* out, bool streaming,
                   T* cached) {
    dispatch_streams(shape.streams, [&]<int n>() {
      streaming&& has_whole_lines(shape, out) ? post_of<n, true>(shape, x, y, coefficients, out, cached)
                                              : post_of<n, false>(shape, x, y, coefficients, out, cached);
    });
  }
  static void post_backward(const StreamShape& shape, const T* dout, const T* x, const T* y, const Sum* coefficients,
                            const StreamPostGradients<T>& gradients) {
    dispatch_streams(shape.streams, [&]<int n>() { post_backward_of<n>(shape, dout, x, y, coefficients, gradients); });
  }
  static void read_dots(const StreamShape& shape, const T* du, const T* x, Sum* dp) {
    dispatch_streams(shape.streams, [&]<int n>() { read_dots_of<n>(shape, du, x, dp); });
  }
  static void pre_backward(const PreBackwardBlock<T>& block) {
    dispatch_streams(block.shape.streams, [&]<int n>() { pre_backward_of<n>(block); });
  }
};

}  // namespace anabranch::detail

namespace anabranch {

template <CpuIsa isa, class T>
StreamKernels<T> stream_kernels_for() {
  using Loops = detail::StreamLoops<isa, T>;
  return {Loops::widen,         Loops::moments,   Loops::pre,         Loops::post,
          Loops::post_backward, Loops::read_dots, Loops::pre_backward};
}

}  // namespace anabranch
