// The N-cache's read (ncache_read.hpp defines it) on the CPU, on several threads.
//
// Slots are cut into tiles of 512; a tile's occupied slots are taken 32 at a time: their features are copied into
// one block x [32, K + 1] that stays in the first cache, multiplied by the transposed weight, and the gates computed
// across the block in vectors. Where slots name the same nodes again and again, the forward multiplies each node's
// features once (ncache_project_cpu.hpp). Behind x comes a column of ones, so the bias is a row of the weight with
// the weight's gradient; frequency and phase come by columns of sines. Backward, each tile has its own sums of the
// parameters' gradients, added up in the order of tiles; those of feature tables are added by the worker whose share
// has the row, walking all slots in order. So results are bitwise equal for every number of threads.
#pragma once

#include <algorithm>
#include <cstring>

#include "anabranch/core/check.hpp"
#include "anabranch/core/cpu_features.hpp"
#include "anabranch/temporal/ncache_project_cpu.hpp"
#include "anabranch/temporal/ncache_read.hpp"

namespace anabranch {

/// The weights transposed, biases as their last rows, padded: columns to vectors, rows to eights. All padding is zero.
/// Gradients have the same layout and, behind the bias, 2 Dt rows more: sums over slots of sin(angle), and of
/// tau sin(angle), times the gradient of gx, from which those of phase and frequency follow.
template <class Sum>
struct NCachePacked {
  int64_t depth, hidden_depth;  // rows: of [weight; bias; 2 Dt of zeros] and [weight_hh; bias_hh]
  int64_t columns;              // 3F, padded
  Sum *weight, *weight_hh;      // [depth, columns], [hidden_depth, columns]

  int64_t size() const { return (depth + hidden_depth) * columns; }
};

template <class T>
struct NCacheReadKernels {
  using Sum = accumulate_t<T>;
  int64_t lanes;
  /// The nodes' part of gx for `count` nodes: to [count, columns].
  void (*project)(const NCacheRead<T>& problem, const NCachePacked<Sum>& packed, const int64_t* ids, int64_t count,
                  std::byte* scratch, Sum* to);
  /// z of the occupied slots in [begin, end).
  void (*forward)(const NCacheRead<T>& problem, const NCachePacked<Sum>& packed, const NCacheProjected<Sum>& projected,
                  int64_t begin, int64_t end, std::byte* scratch, T* z);
  /// Adds to `partial` (gradients in the packed layout); writes gradients of gx to dgates [count, columns] and of
  /// states to dstates [count, F]. Each of the three may be null.
  void (*backward)(const NCacheRead<T>& problem, const NCachePacked<Sum>& packed, const T* dz, int64_t begin,
                   int64_t end, std::byte* scratch, Sum* partial, Sum* dgates, Sum* dstates);
  /// row[k] += sum over gates of dgates[gate] * weight[gate * stride + k], k < width.
  void (*add_row)(int64_t gates, int64_t width, int64_t stride, const Sum* dgates, const Sum* weight, Sum* row);
};

/// The kernels compiled for `isa`; one specialisation per translation unit. AVX-512 BF16 adds nothing here.
template <CpuIsa isa, class T>
NCacheReadKernels<T> ncache_read_kernels_for();

#define ANABRANCH_NCACHE_READ_KERNELS(isa, qualifier)                                      \
  qualifier template NCacheReadKernels<float> ncache_read_kernels_for<isa, float>();       \
  qualifier template NCacheReadKernels<double> ncache_read_kernels_for<isa, double>();     \
  qualifier template NCacheReadKernels<bfloat16> ncache_read_kernels_for<isa, bfloat16>(); \
  qualifier template NCacheReadKernels<half> ncache_read_kernels_for<isa, half>();

ANABRANCH_NCACHE_READ_KERNELS(CpuIsa::portable, extern)
#if defined(__x86_64__)
ANABRANCH_NCACHE_READ_KERNELS(CpuIsa::avx2, extern)
ANABRANCH_NCACHE_READ_KERNELS(CpuIsa::avx512, extern)
#endif

template <class T>
NCacheReadKernels<T> ncache_read_kernels() {
#if defined(__x86_64__)
  if (cpu_isa() >= CpuIsa::avx512) return ncache_read_kernels_for<CpuIsa::avx512, T>();
  if (cpu_isa() >= CpuIsa::avx2) return ncache_read_kernels_for<CpuIsa::avx2, T>();
#endif
  return ncache_read_kernels_for<CpuIsa::portable, T>();
}

namespace detail {

inline constexpr int64_t ncache_tile = 512, ncache_block = 32, ncache_unroll = 8;

/// A block's arrays in the scratch of a worker, each from a cache line on.
template <class Sum>
struct NCacheScratch {
  Sum *x, *states, *input, *hidden;  // [32, depth], [32, hidden_depth], [32, columns] twice
  Sum *gates[5], *value;             // [32, F]: sums of r, of u, n of gx, n of gh, states; results
  double *tau, *angle;               // [32], [32, Dt]
  Sum *cosine, *sine;                // [32, Dt]
  int64_t bytes = 0;

  template <class T>
  [[gnu::always_inline]] NCacheScratch(const NCacheRead<T>& problem, const NCachePacked<Sum>& packed,
                                       std::byte* memory) {
    const auto take = [&]<class U>(U*& pointer, int64_t count) __attribute__((always_inline)) {
      pointer = reinterpret_cast<U*>(memory + bytes);
      bytes += (count * ncache_block * static_cast<int64_t>(sizeof(U)) + 63) / 64 * 64;
    };
    take(x, packed.depth), take(states, packed.hidden_depth);
    take(input, packed.columns), take(hidden, packed.columns);
    for (Sum*& gate : gates) take(gate, problem.state_size);
    take(value, problem.state_size);
    take(tau, 1), take(angle, problem.time_width);
    take(cosine, problem.time_width), take(sine, problem.time_width);
  }
};

/// Weights packed for a call, and the memory they lie in.
template <class T>
class NCacheWeights {
 public:
  using Sum = accumulate_t<T>;

  NCacheWeights(const NCacheRead<T>& problem, int64_t lanes)
      : packed(shape(problem, lanes)), memory_(static_cast<size_t>(packed.size())) {
    packed.weight = memory_.data();
    packed.weight_hh = packed.weight + packed.depth * packed.columns;
    std::fill_n(memory_.data(), packed.size(), Sum(0));
    const auto pack = [&](const Sum* weight, const Sum* bias, int64_t depth, Sum* to) {
      for (int64_t j = 0; j < problem.gates(); ++j) {
        for (int64_t k = 0; k < depth; ++k) to[k * packed.columns + j] = weight[j * depth + k];
        to[depth * packed.columns + j] = bias[j];
      }
    };
    pack(problem.weight, problem.bias, problem.width(), packed.weight);
    pack(problem.weight_hh, problem.bias_hh, problem.state_size, packed.weight_hh);
  }

  NCachePacked<Sum> packed;

 private:
  static NCachePacked<Sum> shape(const NCacheRead<T>& problem, int64_t lanes) {
    const auto padded = [](int64_t n, int64_t to) { return (n + to - 1) / to * to; };
    return {padded(problem.width() + 1 + 2 * problem.time_width, ncache_unroll),
            padded(problem.state_size + 1, ncache_unroll), padded(problem.gates(), lanes), nullptr, nullptr};
  }
  Temporary<Sum> memory_;
};

/// f(tile's begin, end, scratch, tile) over tiles of `count` slots or nodes.
template <class T, class F>
void for_each_ncache_tile(const NCacheRead<T>& problem, const NCachePacked<accumulate_t<T>>& packed, int64_t count,
                          F&& f) {
  const int64_t tiles = (count + ncache_tile - 1) / ncache_tile;
  const int num_workers = workers_for(tiles, 4);
  const int64_t size = NCacheScratch<accumulate_t<T>>(problem, packed, nullptr).bytes;
  Temporary<std::byte> scratch(static_cast<size_t>(size * num_workers));
  // Blocks that are not full multiply what lies there too, and throw it away.
  std::memset(scratch.data(), 0, static_cast<size_t>(size * num_workers));
  parallel_tiles(tiles, num_workers, [&](int64_t tile, int worker) {
    const int64_t begin = tile * ncache_tile, end = std::min(begin + ncache_tile, count);
    f(begin, end, scratch.data() + size * worker, tile);
  });
}

}  // namespace detail

/// ncache_read_reference, up to rounding.
template <class T>
void ncache_read_cpu(const NCacheRead<T>& problem, T* z) {
  using Sum = accumulate_t<T>;
  const auto kernels = ncache_read_kernels<T>();
  const detail::NCacheWeights<T> weights(problem, kernels.lanes);
  const auto& packed = weights.packed;
  check(problem.count < int64_t{1} << 31, "ncache_read: nodes have ", problem.count,
        " slots, must be below 2^31; read fewer nodes at once");
  const detail::DistinctNodes nodes(problem);
  const bool projects = 2 * nodes.count() <= problem.count;
  const Temporary<Sum> sums(projects ? nodes.count() * packed.columns : 0);
  if (projects) {
    detail::for_each_ncache_tile(problem, packed, nodes.count(),
                                 [&](int64_t begin, int64_t end, std::byte* scratch, int64_t) {
                                   kernels.project(problem, packed, nodes.ids() + begin, end - begin, scratch,
                                                   sums.data() + begin * packed.columns);
                                 });
  }
  const NCacheProjected<Sum> projected{projects ? sums.data() : nullptr, nodes.row_of_slot()};
  detail::for_each_ncache_tile(problem, packed, problem.count,
                               [&](int64_t begin, int64_t end, std::byte* scratch, int64_t) {
                                 std::memset(static_cast<void*>(z + begin * problem.state_size), 0,
                                             (end - begin) * problem.state_size * sizeof(T));
                                 kernels.forward(problem, packed, projected, begin, end, scratch, z);
                               });
}

/// ncache_read_backward_reference, up to rounding.
template <class T>
void ncache_read_backward_cpu(const NCacheRead<T>& problem, const T* dz,
                              const NCacheReadGradients<accumulate_t<T>>& to) {
  using Sum = accumulate_t<T>;
  const auto kernels = ncache_read_kernels<T>();
  const detail::NCacheWeights<T> weights(problem, kernels.lanes);
  const auto& packed = weights.packed;
  const int64_t F = problem.state_size;
  const bool parameters = to.frequency || to.phase || to.weight || to.bias || to.weight_hh || to.bias_hh;
  const bool tables = to.node_features || to.edge_features;
  const int64_t tiles = (problem.count + detail::ncache_tile - 1) / detail::ncache_tile;
  const int64_t partial_size = packed.size();
  Temporary<Sum> partials(static_cast<size_t>(parameters ? std::max<int64_t>(tiles, 1) * partial_size : 0));
  Temporary<Sum> dgates(static_cast<size_t>(tables ? problem.count * packed.columns : 0));
  detail::for_each_ncache_tile(problem, packed, problem.count,
                               [&](int64_t begin, int64_t end, std::byte* scratch, int64_t tile) {
                                 Sum* partial = parameters ? partials.data() + tile * partial_size : nullptr;
                                 if (partial) std::fill_n(partial, partial_size, Sum(0));
                                 if (to.states) std::fill_n(to.states + begin * F, (end - begin) * F, Sum(0));
                                 kernels.backward(problem, packed, dz, begin, end, scratch, partial,
                                                  tables ? dgates.data() : nullptr, to.states);
                               });

  if (parameters) {
    Sum* sum = partials.data();
    if (tiles == 0) std::fill_n(sum, partial_size, Sum(0));
    for (int64_t tile = 1; tile < tiles; ++tile) {
      const Sum* partial = sum + tile * partial_size;
      for (int64_t k = 0; k < partial_size; ++k) sum[k] += partial[k];
    }
    const auto unpack = [&](const Sum* from, int64_t depth, Sum* weight, Sum* bias) {
      for (int64_t j = 0; j < problem.gates(); ++j) {
        for (int64_t k = 0; weight && k < depth; ++k) weight[j * depth + k] = from[k * packed.columns + j];
        if (bias) bias[j] = from[depth * packed.columns + j];
      }
    };
    unpack(sum, problem.width(), to.weight, to.bias);
    unpack(sum + packed.depth * packed.columns, F, to.weight_hh, to.bias_hh);
    const int64_t times = problem.time_width, first = problem.width() - times;
    for (int64_t d = 0; d < times; ++d) {
      const Sum* row = packed.weight + (first + d) * packed.columns;
      const Sum* sines = sum + (problem.width() + 1 + d) * packed.columns;
      double phase = 0, frequency = 0;
      for (int64_t j = 0; j < problem.gates(); ++j) {
        phase -= static_cast<double>(row[j]) * static_cast<double>(sines[j]);
        frequency -= static_cast<double>(row[j]) * static_cast<double>(sines[times * packed.columns + j]);
      }
      if (to.phase) to.phase[d] = static_cast<Sum>(phase);
      if (to.frequency) to.frequency[d] = static_cast<Sum>(frequency);
    }
  }

  const auto add_rows = [&](Sum* table, int64_t width, int64_t offset, const int64_t* ids) {
    if (!table || width == 0) return;
    const int num_workers = workers_for(problem.count * width, 1 << 16);
    parallel_workers(num_workers, [&](int worker) {
      const NodeShare share{worker, num_workers};
      for (int64_t i = 0; i < problem.count; ++i) {
        if (!problem.occupied(i) || !share.owns(ids[i])) continue;
        kernels.add_row(problem.gates(), width, problem.width(), dgates.data() + i * packed.columns,
                        problem.weight + offset, table + ids[i] * width);
      }
    });
  };
  add_rows(to.node_features, problem.node_width, 0, problem.keys);
  add_rows(to.edge_features, problem.edge_width, problem.node_width, problem.event_ids);
}

}  // namespace anabranch
