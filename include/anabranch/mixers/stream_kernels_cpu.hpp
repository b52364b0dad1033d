// The stream kernels; each stream_kernels_<isa>.cpp compiles them once.
//
// All loops run over the channels of one token at a time, a vector after another, so memory is read in order; only
// pre_backward (pre_backward_kernel_cpu.hpp) does not. Everything is a template on the instruction set.
#pragma once

#include "anabranch/mixers/pre_backward_kernel_cpu.hpp"

namespace anabranch::detail {

template <CpuIsa isa, class T>
struct StreamLoops : RowLoops<isa, T> {
  using Base = RowLoops<isa, T>;
  using Row = typename Base::Row;
  using Sum = typename Base::Sum;
  using Sums = typename Base::Sums;
  using Vector = typename Base::Vector;
  using Base::for_each_vector, Base::has_whole_lines, Base::width;

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
    if constexpr (streaming) Row::end_streaming();
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
    dispatch_streams(block.shape.streams, [&]<int n>() { PreBackwardLoops<isa, T>::template run<n>(block); });
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
