// The arithmetic of pair_encode for one pair whose keys are joined, in vectors over channels;
// csrc/temporal/pair_encode_<isa>.cpp compiles it once with its flags.
//
// Parameters lie as rows of `padded` channels, a multiple of 16: first the weight's columns, then the code table, and
// their gradients likewise, so no loop has a rest. ReLU forward: a few vectors of channels stay in registers while all
// keys go by, features multiply-adds, a maximum and a sum for each. Backward: the same again, then 2 features
// multiply-adds more and a row of the table's gradient; the sums over channels that are a key's dz stay in vectors (a
// cache line each) until all channels are through. Floor: those multiply-adds, 6 a feature, key and channel in all.
//
// Everything is a template on the instruction set, or always inlined, so that no copy compiled with AVX-512 can be the
// one the linker keeps for an older machine.
#pragma once

#include "anabranch/core/lanes_cpu.hpp"
#include "anabranch/temporal/pair_encode_cpu.hpp"

namespace anabranch::detail {

template <CpuIsa isa, class Sum>
struct PairEncodeLoops {
  using V = Lanes<isa, Sum>;
  using Vector = typename V::Vector;
  static constexpr int64_t width = V::width;

  [[gnu::always_inline]] static Vector load(const Sum* from) {
    Vector v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
  }
  [[gnu::always_inline]] static void store(Sum* to, Vector v) { __builtin_memcpy(to, &v, sizeof(v)); }

  /// dz[i] = the sum of the lanes of vector i, for n of them: `width` at a time are transposed and added.
  [[gnu::always_inline]] static void sum_lanes(const Sum* vectors, int64_t n, Sum* dz) {
    int64_t i = 0;
    for (; i + width <= n; i += width) {
      V block[width];
      for (int64_t l = 0; l < width; ++l) block[l] = load(vectors + (i + l) * width);
      transpose_lanes<1>(block);
      Vector sum = block[0].v;
      for (int64_t l = 1; l < width; ++l) sum += block[l].v;
      store(dz + i, sum);
    }
    for (; i < n; ++i) {
      Sum sum = vectors[i * width];
      for (int64_t l = 1; l < width; ++l) sum += vectors[i * width + l];
      dz[i] = sum;
    }
  }

  /// f.operator()<n>(column) for all channels, n vectors at a time where there are so many.
  template <int n, class F>
  [[gnu::always_inline]] static void for_columns(int64_t padded, F&& f) {
    int64_t column = 0;
    for (; column + n * width <= padded; column += n * width) f.template operator()<n>(column);
    for (; column < padded; column += width) f.template operator()<1>(column);
  }

  /// weight z + the table's row, for n vectors of channels from parameters + column. features_ 0: any number.
  template <int n>
  [[gnu::always_inline]] static void values_of(const EncodeRows<Sum>& rows, int64_t features, int64_t column,
                                               const Sum* z, int32_t code, Vector (&v)[n]) {
    const Sum* table = rows.parameters + (features + code) * rows.padded + column;
    for (int i = 0; i < n; ++i) v[i] = load(table + i * width);
    for (int64_t f = 0; f < features; ++f) {
      const Sum* weight = rows.parameters + f * rows.padded + column;
      const Vector factor = z[f] - Vector{};
      for (int i = 0; i < n; ++i) v[i] += load(weight + i * width) * factor;
    }
  }

  template <class Features>
  [[gnu::always_inline]] static void relu_of(Features features, const EncodeRows<Sum>& rows, int64_t count,
                                             const Sum* z, const int32_t* codes, Sum* out) {
    for_columns<4>(rows.padded, [&]<int n>(int64_t column) __attribute__((always_inline)) {
      Vector total[n] = {};
      for (int64_t k = 0; k < count; ++k) {
        Vector v[n];
        values_of<n>(rows, features, column, z + k * features, codes[k], v);
        for (int i = 0; i < n; ++i) total[i] += v[i] < 0 ? Vector{} : v[i];
      }
      for (int i = 0; i < n; ++i) store(out + column + i * width, total[i]);
    });
  }

  static void relu(const EncodeRows<Sum>& rows, int64_t count, const Sum* z, const int32_t* codes, Sum* out) {
    if (rows.features == 4) {
      relu_of(std::integral_constant<int64_t, 4>{}, rows, count, z, codes, out);
    } else {
      relu_of(rows.features, rows, count, z, codes, out);
    }
  }

  /// partial [count, features]: a vector for each number of dz. kept > 0: that many features, whose columns of the
  /// weight and of its gradient stay in registers.
  template <int kept>
  [[gnu::always_inline]] static void relu_backward_of(const EncodeRows<Sum>& rows, int64_t count, const Sum* z,
                                                      const int32_t* codes, const Sum* dout, Sum* partial,
                                                      Sum* gradients) {
    const int64_t features = kept ? kept : rows.features;
    for_columns<2>(rows.padded, [&]<int n>(int64_t column) __attribute__((always_inline)) {
      Vector upstream[n], weight[kept ? kept : 1][n], weight_gradient[kept ? kept : 1][n] = {};
      for (int i = 0; i < n; ++i) upstream[i] = load(dout + column + i * width);
      for (int64_t f = 0; f < kept; ++f) {
        for (int i = 0; i < n; ++i) weight[f][i] = load(rows.parameters + f * rows.padded + column + i * width);
      }
      for (int64_t k = 0; k < count; ++k) {
        const Sum* key = z + k * features;
        const int64_t row = (features + codes[k]) * rows.padded + column;
        Vector v[n];
        for (int i = 0; i < n; ++i) v[i] = load(rows.parameters + row + i * width);
        for (int64_t f = 0; f < features; ++f) {
          const Vector factor = key[f] - Vector{};
          for (int i = 0; i < n; ++i) {
            v[i] += factor * (kept ? weight[f][i] : load(rows.parameters + f * rows.padded + column + i * width));
          }
        }
        for (int i = 0; i < n; ++i) {
          v[i] = v[i] <= 0 ? Vector{} : upstream[i];
          store(gradients + row + i * width, load(gradients + row + i * width) + v[i]);
        }
        for (int64_t f = 0; f < features; ++f) {
          Sum* to = partial + (k * features + f) * width;
          const Vector factor = key[f] - Vector{};
          Vector sum = load(to);
          for (int i = 0; i < n; ++i) {
            const int64_t at = f * rows.padded + column + i * width;
            if constexpr (kept > 0) {
              sum += weight[f][i] * v[i];
              weight_gradient[f][i] += factor * v[i];
            } else {
              sum += load(rows.parameters + at) * v[i];
              store(gradients + at, load(gradients + at) + factor * v[i]);
            }
          }
          store(to, sum);
        }
      }
      for (int64_t f = 0; f < kept; ++f) {
        for (int i = 0; i < n; ++i) {
          Sum* to = gradients + f * rows.padded + column + i * width;
          store(to, load(to) + weight_gradient[f][i]);
        }
      }
    });
  }

  static void relu_backward(const EncodeRows<Sum>& rows, int64_t count, const Sum* z, const int32_t* codes,
                            const Sum* dout, Sum* partial, Sum* dz, Sum* gradients) {
    __builtin_memset(partial, 0, count * rows.features * width * sizeof(Sum));
    if (rows.features == 4) {
      relu_backward_of<4>(rows, count, z, codes, dout, partial, gradients);
    } else {
      relu_backward_of<0>(rows, count, z, codes, dout, partial, gradients);
    }
    sum_lanes(partial, count * rows.features, dz);
  }

  static void linear(const EncodeRows<Sum>& rows, const EncodeFactors<Sum>& factors, Sum* out) {
    for_columns<4>(rows.padded, [&]<int n>(int64_t column) __attribute__((always_inline)) {
      Vector total[n] = {};
      for (int64_t e = 0; e < factors.count; ++e) {
        const Sum* from = rows.parameters + factors.rows[e] * rows.padded + column;
        const Vector factor = factors.values[e] - Vector{};
        for (int i = 0; i < n; ++i) total[i] += factor * load(from + i * width);
      }
      for (int i = 0; i < n; ++i) store(out + column + i * width, total[i]);
    });
  }

  static void linear_backward(const EncodeRows<Sum>& rows, const EncodeFactors<Sum>& factors, const Sum* dout, Sum* dz,
                              Sum* gradients) {
    for (int64_t e = 0; e < factors.count; ++e) {
      Sum* to = gradients + factors.rows[e] * rows.padded;
      const Vector factor = factors.values[e] - Vector{};
      for (int64_t c = 0; c < rows.padded; c += width) store(to + c, load(to + c) + factor * load(dout + c));
    }
    for (int64_t f = 0; f < rows.features; ++f) {
      Vector sum{};
      const Sum* weight = rows.parameters + f * rows.padded;
      for (int64_t c = 0; c < rows.padded; c += width) sum += load(weight + c) * load(dout + c);
      Sum lanes[width];
      store(lanes, sum);
      sum_lanes(lanes, 1, dz + f);
    }
  }
};

}  // namespace anabranch::detail

namespace anabranch {

template <CpuIsa isa, class Sum>
PairEncodeKernels<Sum> pair_encode_kernels_for() {
  using Loops = detail::PairEncodeLoops<isa, Sum>;
  return {Loops::relu, Loops::relu_backward, Loops::linear, Loops::linear_backward};
}

}  // namespace anabranch
