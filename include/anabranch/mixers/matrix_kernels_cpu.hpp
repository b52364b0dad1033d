// The matrix kernels: blocks of as many matrices as there are lanes are read transposed, computed by the definitions of
// project.hpp and coefficients.hpp in Lanes, and written back.
#pragma once

#include "anabranch/core/lanes_cpu.hpp"
#include "anabranch/mixers/matrix_kernels.hpp"

namespace anabranch::detail {

template <CpuIsa isa, class Sum>
struct MatrixLoops {
  using V = Lanes<isa, Sum>;
  static constexpr int width = V::width;

  /// Calls f(first, count) for blocks of up to `most` of `total`.
  template <class F>
  [[gnu::always_inline]] static void for_each_block(int64_t total, int64_t most, const F& f) {
    for (int64_t first = 0; first < total; first += most) f(first, total - first < most ? total - first : most);
  }

  /// One instantiation of each for all kernels.
  template <int n>
  [[gnu::noinline]] static void project_lanes(const Mixer& mixer, V* logits, V (&h)[n][n]) {
    project<V, n>(mixer, logits, h);
  }
  template <int n>
  [[gnu::noinline]] static void project_lanes_backward(const Mixer& mixer, V* logits, V (&h)[n][n], V (&dh)[n][n],
                                                       V* history, V* dlogits) {
    project_backward<V, n>(mixer, logits, h, dh, History<V>{history, 1}, dlogits);
  }

  /// Sinkhorn's matrices, two blocks at a time: half an iteration is two short chains of operations, in whose gaps the
  /// other block's run. A last block that is alone runs beside a copy of itself, so bits do not depend on its place.
  template <int n>
  [[gnu::noinline]] static void mix_pairs(const Mixer& mixer, int64_t total, const Sum* logits, Sum* matrices) {
    constexpr int size = n * n;
    using Both = Pair<V>;
    for_each_block(total, 2 * width, [&](int64_t first, int64_t count) {
      const int64_t counts[2] = {count < width ? count : width, count - width};
      V l[2][size], out[2][size];
      Both joined[size], a[n][n], h[n][n];
      for (int b = 0; b < 2; ++b) {
        const int64_t from = first + (counts[b] > 0 ? b * width : 0);
        load_transposed(logits + from * size, size, size, counts[b] > 0 ? counts[b] : counts[0], l[b]);
      }
      for (int k = 0; k < size; ++k) joined[k] = {l[0][k], l[1][k]};
      load_logits<Both, n>(mixer, joined, a);
      Sinkhorn<Both, n>{mixer, {nullptr, 0}}.forward(a, h);
      finish_matrix<Both, n>(mixer, joined, h);
      for (int k = 0; k < size; ++k) out[0][k] = h[k / n][k % n].first, out[1][k] = h[k / n][k % n].second;
      for (int b = 0; b < 2 && counts[b] > 0; ++b) {
        store_transposed(out[b], size, size, counts[b], matrices + (first + b * width) * size);
      }
    });
  }

  static void mix(const Mixer& mixer, int64_t total, const Sum* logits, Sum* matrices, Sum* scratch) {
    const int64_t count_logits = mixer.num_logits();
    V* const l = reinterpret_cast<V*>(scratch);
    dispatch_streams(mixer.num_streams, [&]<int n>() {
      if constexpr (n <= 4) {
        if (mixer.kind == MixerKind::sinkhorn) return mix_pairs<n>(mixer, total, logits, matrices);
      }
      for_each_block(total, width, [&](int64_t first, int64_t count) {
        V h[n][n];
        if (count_logits) load_transposed(logits + first * count_logits, count_logits, count_logits, count, l);
        project_lanes<n>(mixer, l, h);
        store_transposed(&h[0][0], n * n, n * n, count, matrices + first * n * n);
      });
    });
  }

  static void mix_backward(const Mixer& mixer, int64_t total, const Sum* dmatrices, const Sum* logits,
                           const Sum* matrices, Sum* dlogits, Sum* scratch) {
    const int64_t count_logits = mixer.num_logits();
    if (count_logits == 0) return;
    V *const l = reinterpret_cast<V*>(scratch), *const dl = l + count_logits, *const history = dl + count_logits;
    dispatch_streams(mixer.num_streams, [&]<int n>() {
      for_each_block(total, width, [&](int64_t first, int64_t count) {
        V h[n][n], dh[n][n];
        load_transposed(logits + first * count_logits, count_logits, count_logits, count, l);
        load_transposed(matrices + first * n * n, n * n, n * n, count, &h[0][0]);
        load_transposed(dmatrices + first * n * n, n * n, n * n, count, &dh[0][0]);
        project_lanes_backward<n>(mixer, l, h, dh, history, dl);
        store_transposed(dl, count_logits, count_logits, count, dlogits + first * count_logits);
      });
    });
  }

  /// A block's products (zero without a weight) and logits.
  static void load_products(const StreamProjection<Sum>& projection, int64_t first, int64_t count,
                            const Sum* statistics, V* products, V* logits) {
    const int64_t num_logits = projection.num_logits();
    if (!projection.weight) {
      for (int64_t k = 0; k < num_logits; ++k) products[k] = V(0), logits[k] = V(projection.bias[k]);
      return;
    }
    const int64_t stride = projection.num_statistics();
    load_transposed(statistics + first * stride, stride, num_logits, count, products);
    for (int64_t k = 0; k < num_logits; ++k) {
      if (projection.squash) products[k] = tanh_of(products[k]);
      logits[k] = V(projection.scale[k]) * products[k] + V(projection.bias[k]);
    }
  }

  /// The mixer's logits side by side: where they are, or gathered into `buffer`.
  static V* mixer_logits(const CoefficientMap& map, V* logits, V* buffer) {
    if (!map.per_stream) return logits + 2 * map.num_gate_logits();
    for (int64_t k = 0; k < map.mixer.num_logits(); ++k) buffer[k] = logits[map.mixer_index(k)];
    return buffer;
  }

  static void coefficients(const StreamProjection<Sum>& projection, int64_t total, const Sum* statistics,
                           Sum* coefficients, Sum* scratch) {
    const CoefficientMap& map = projection.map;
    const int64_t num_logits = projection.num_logits();
    V *const products = reinterpret_cast<V*>(scratch), *const logits = products + num_logits;
    V* const buffer = logits + num_logits;
    dispatch_streams(map.mixer.num_streams, [&]<int n>() {
      V* const out = buffer + map.mixer.num_logits();
      V(&p)[n] = reinterpret_cast<V(&)[n]>(*out);
      V(&q)[n] = reinterpret_cast<V(&)[n]>(*(out + n));
      V(&h)[n][n] = reinterpret_cast<V(&)[n][n]>(*(out + 2 * n));
      for_each_block(total, width, [&](int64_t first, int64_t count) {
        load_products(projection, first, count, statistics, products, logits);
        gate_coefficients<V, n>(map, logits, p, q);
        project_lanes<n>(map.mixer, mixer_logits(map, logits, buffer), h);
        store_transposed(out, n * (n + 2), n * (n + 2), count, coefficients + first * n * (n + 2));
      });
    });
  }

  static void coefficients_backward(const StreamProjection<Sum>& projection, int64_t total, const Sum* statistics,
                                    const Sum* coefficients, const Sum* dcoefficients, Sum* dproducts, Sum* dscale,
                                    Sum* dbias, Sum* scratch) {
    const CoefficientMap& map = projection.map;
    const int64_t num_logits = projection.num_logits(), own = map.mixer.num_logits();
    V *const products = reinterpret_cast<V*>(scratch), *const logits = products + num_logits;
    V *const dlogits = logits + num_logits, *const buffer = dlogits + num_logits, *const dbuffer = buffer + own;
    dispatch_streams(map.mixer.num_streams, [&]<int n>() {
      constexpr int size = n * (n + 2);
      V *const out = dbuffer + own, *const dout = out + size, *const history = dout + size;
      V(&h)[n][n] = reinterpret_cast<V(&)[n][n]>(*(out + 2 * n));
      V(&dp)[n] = reinterpret_cast<V(&)[n]>(*dout);
      V(&dq)[n] = reinterpret_cast<V(&)[n]>(*(dout + n));
      V(&dh)[n][n] = reinterpret_cast<V(&)[n][n]>(*(dout + 2 * n));
      for_each_block(total, width, [&](int64_t first, int64_t count) {
        load_products(projection, first, count, statistics, products, logits);
        load_transposed(coefficients + first * size, size, size, count, out);
        load_transposed(dcoefficients + first * size, size, size, count, dout);
        gate_coefficients_backward<V, n>(map, logits, dp, dq, dlogits);
        if (map.per_stream) {
          project_lanes_backward<n>(map.mixer, mixer_logits(map, logits, buffer), h, dh, history, dbuffer);
          for (int64_t k = 0; k < own; ++k) dlogits[map.mixer_index(k)] = dbuffer[k];
        } else {
          const int64_t gates = 2 * map.num_gate_logits();
          project_lanes_backward<n>(map.mixer, logits + gates, h, dh, history, dlogits + gates);
        }
        for (int64_t k = 0; k < num_logits; ++k) {
          for (int64_t l = 0; l < count; ++l) {
            dscale[k] += dlogits[k].v[l] * products[k].v[l];
            dbias[k] += dlogits[k].v[l];
          }
          dlogits[k] = dlogits[k] * V(projection.scale[k]);
          if (projection.squash) dlogits[k] = dlogits[k] * (V(1) - products[k] * products[k]);
        }
        store_transposed(dlogits, num_logits, num_logits, count, dproducts + first * num_logits);
      });
    });
  }
};

}  // namespace anabranch::detail

namespace anabranch {

template <CpuIsa isa, class Sum>
MatrixKernels<Sum> matrix_kernels_for() {
  using Loops = detail::MatrixLoops<isa, Sum>;
  return {Loops::mix, Loops::mix_backward, Loops::coefficients, Loops::coefficients_backward};
}

}  // namespace anabranch
