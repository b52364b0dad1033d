// The backward of the N-cache's read on the GPU. The gates are computed again as in the forward (ncache_read.cuh) and
// their gradients go to memory, 4F numbers a slot. Of those, each block sums up the parameters' gradients of its tiles,
// and a second launch adds up the blocks, in order: at most 256 of them, by the number of slots alone. Gradients of
// tables are added in the order of the slots (ncache_add_rows.cuh). No float atomics anywhere.
//
// Bytes beside the forward's: the features once more (L1 or L2), 4F sums a slot written and read, and 256 partial sums
// of the parameters. FLOPs: twice the forward's for the parameters.
#pragma once

#include "anabranch/temporal/ncache_add_rows.cuh"

namespace anabranch {

namespace detail {

inline constexpr int64_t kNCachePartials = 256;

/// Where a block's sums of the parameters' gradients lie: weight, bias, weight_hh, bias_hh, frequency, phase.
struct NCachePartialLayout {
  int64_t bias, weight_hh, bias_hh, frequency, phase, size;

  template <class T>
  ANABRANCH_HOST_DEVICE static NCachePartialLayout of(const NCacheRead<T>& problem) {
    const int64_t gates = problem.gates();
    const int64_t bias = gates * problem.width(), weight_hh = bias + gates;
    const int64_t bias_hh = weight_hh + gates * problem.state_size, frequency = bias_hh + gates;
    return {bias, weight_hh, bias_hh, frequency, frequency + problem.time_width, frequency + 2 * problem.time_width};
  }
};

/// A row of gates' gradients: r, u, n of gx, n of gh. The number that row `gate` of weight_hh has.
ANABRANCH_HOST_DEVICE inline int64_t hidden_gate(int64_t gate, int64_t size) {
  return gate < 2 * size ? gate : gate + size;
}

template <class T>
struct NCacheBackwardTile : NCacheTile<T> {
  using Sum = accumulate_t<T>;
  using NCacheTile<T>::problem, NCacheTile<T>::x, NCacheTile<T>::list, NCacheTile<T>::thread, NCacheTile<T>::lane;
  using NCacheTile<T>::warp, NCacheTile<T>::first, NCacheTile<T>::count;
  const Sum* dgates;
  Sum* partial;
  NCachePartialLayout layout;

  __device__ NCacheBackwardTile(const NCacheRead<T>& problem, SharedMemory& shared, const Sum* dgates, Sum* partial)
      : NCacheTile<T>(problem, shared), dgates(dgates), partial(partial), layout(NCachePartialLayout::of(problem)) {}

  __device__ const Sum* gates_of(int rank) const {
    const int slot = list[rank];
    return dgates + (first + slot) * 4 * problem.state_size;
  }

  /// weight: thread k takes column k of a stage and every second four of gates.
  __device__ void add_weight() const {
    const int64_t gates = problem.gates(), width = problem.width();
    for (int64_t begin = 0; begin < width; begin += kNCacheColumns) {
      this->stage(begin);
      const int column = thread % kNCacheColumns;
      if (begin + column >= width) continue;
      for (int64_t gate = thread / kNCacheColumns * 4; gate < gates; gate += kNCacheThreads / kNCacheColumns * 4) {
        const int n = static_cast<int>(gates - gate < 4 ? gates - gate : 4);
        Sum sums[4] = {};
        for (int rank = 0; rank < count; ++rank) {
          const Sum value = x[rank * kNCacheStride + column];
          const Sum* given = gates_of(rank) + gate;
#pragma unroll
          for (int i = 0; i < 4; ++i) sums[i] += i < n ? value * given[i] : Sum(0);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i < n) partial[(gate + i) * width + begin + column] += sums[i];
        }
      }
    }
  }

  /// Biases and weight_hh: a number per thread.
  __device__ void add_hidden() const {
    const int64_t gates = problem.gates(), size = problem.state_size;
    for (int64_t at = thread; at < gates * (size + 2); at += kNCacheThreads) {
      const int64_t gate = at % gates, k = at / gates;  // k is a state, or one of the biases
      Sum sum = 0;
      for (int rank = 0; rank < count; ++rank) {
        const int slot = list[rank];
        const Sum* row = dgates + (first + slot) * 4 * size;
        if (k == size) {
          sum += row[gate];
        } else {
          const Sum given = row[hidden_gate(gate, size)];
          sum += k < size ? given * static_cast<Sum>(problem.states[(first + slot) * size + k]) : given;
        }
      }
      const int64_t to =
          k < size ? layout.weight_hh + gate * size + k : (k == size ? layout.bias : layout.bias_hh) + gate;
      partial[to] += sum;
    }
  }

  /// frequency and phase: a warp for each, a lane for each slot.
  __device__ void add_times() const {
    for (int64_t d = warp; d < problem.time_width; d += kNCacheThreads / 32) {
      double dangle = 0, dangle_tau = 0;
      if (lane < count) {
        const Sum* row = gates_of(lane);
        const int slot = list[lane];
        Sum dx = 0;
        for (int64_t gate = 0; gate < problem.gates(); ++gate) {
          dx += row[gate] * this->weight(gate, problem.node_width + problem.edge_width + d);
        }
        const double tau = problem.tau(first + slot);
        dangle = -::sin(problem.angle(tau, d)) * static_cast<double>(dx);
        dangle_tau = dangle * tau;
      }
      dangle = warp_sum(dangle), dangle_tau = warp_sum(dangle_tau);
      if (lane == 0) {
        partial[layout.frequency + d] += static_cast<Sum>(dangle_tau);
        partial[layout.phase + d] += static_cast<Sum>(dangle);
      }
    }
  }
};

/// dgates [count, 4F]; dstates [count, F] and partials may be null.
template <class T>
__global__ void __launch_bounds__(kNCacheThreads, 1)
    ncache_read_backward_kernel(NCacheRead<T> problem, int64_t tiles, const T* dz, accumulate_t<T>* dgates,
                                accumulate_t<T>* dstates, accumulate_t<T>* partials) {
  using Sum = accumulate_t<T>;
  SharedMemory shared;
  const int64_t size = problem.state_size, partial_size = NCachePartialLayout::of(problem).size;
  NCacheBackwardTile<T> tile(problem, shared, dgates, partials ? partials + blockIdx.x * partial_size : nullptr);
  for (int64_t at = tile.thread; partials && at < partial_size; at += kNCacheThreads) tile.partial[at] = 0;
  for (int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const int64_t begin = number * kNCacheSlots;
    const int64_t end = begin + kNCacheSlots < problem.count ? begin + kNCacheSlots : problem.count;
    for (int64_t at = begin * size + tile.thread; dstates && at < end * size; at += kNCacheThreads) dstates[at] = 0;
    tile.open(number);
    tile.for_each_state([&](int64_t slot, int64_t which, const GruState<Sum>& gates) {
      const Sum given = static_cast<Sum>(dz[slot * size + which]);
      const auto sums = gates.backward(given);
      Sum* row = dgates + slot * 4 * size + which;
      row[0] = sums.r, row[size] = sums.u, row[2 * size] = sums.n, row[3 * size] = sums.hidden_n;
      if (dstates) dstates[slot * size + which] = given * gates.u;
    });
    __syncthreads();  // all of a slot's gates
    if (partials) tile.add_weight(), tile.add_hidden(), tile.add_times();
    for (int64_t at = tile.thread; dstates && at < tile.count * size; at += kNCacheThreads) {
      const int slot = tile.list[at / size];
      const int64_t which = at % size, i = tile.first + slot;
      Sum sum = 0;
      for (int64_t gate = 0; gate < problem.gates(); ++gate) {
        sum += dgates[i * 4 * size + hidden_gate(gate, size)] * problem.weight_hh[gate * size + which];
      }
      dstates[i * size + which] += sum;
    }
  }
}

/// The parameters' gradients: a thread for each number.
template <class Sum>
__global__ void __launch_bounds__(kNCacheThreads, 1)
    ncache_reduce_kernel(NCachePartialLayout layout, int64_t blocks, const Sum* partials, NCacheReadGradients<Sum> to) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kNCacheThreads + threadIdx.x;
  if (at >= layout.size) return;
  Sum sum = 0;
#pragma unroll 8
  for (int64_t block = 0; block < blocks; ++block) sum += partials[block * layout.size + at];
  const auto put = [&](Sum* gradient, int64_t first) {
    if (gradient) gradient[at - first] = sum;
  };
  if (at < layout.bias) return put(to.weight, 0);
  if (at < layout.weight_hh) return put(to.bias, layout.bias);
  if (at < layout.bias_hh) return put(to.weight_hh, layout.weight_hh);
  if (at < layout.frequency) return put(to.bias_hh, layout.bias_hh);
  if (at < layout.phase) return put(to.frequency, layout.frequency);
  put(to.phase, layout.phase);
}

}  // namespace detail

/// Numbers of accumulate_t<T> that the backward needs to work in.
template <class T>
int64_t ncache_read_backward_workspace(const NCacheRead<T>& problem, bool states) {
  const int64_t blocks = std::min(detail::ncache_tiles(problem), detail::kNCachePartials);
  return problem.count * problem.state_size * (states ? 5 : 4) +
         std::max<int64_t>(blocks, 1) * detail::NCachePartialLayout::of(problem).size;
}

/// ncache_read_backward_reference, up to rounding, but that `to.states` is the gradient of the cache [num_nodes, S, F]
/// and is added to by the rows of `nodes`. Tables must hold zeros, or what is to be added to;
/// `chunk` slots are added to them by a launch.
template <class T>
void ncache_read_backward_cuda(const NCacheRead<T>& problem, const int64_t* nodes, int64_t num_rows, const T* dz,
                               const NCacheReadGradients<accumulate_t<T>>& to, accumulate_t<T>* workspace,
                               cudaStream_t stream, int64_t chunk = node_warp_chunk) {
  using Sum = accumulate_t<T>;
  const int64_t tiles = detail::ncache_tiles(problem), blocks = std::min(tiles, detail::kNCachePartials);
  const auto layout = detail::NCachePartialLayout::of(problem);
  const bool parameters = to.frequency || to.phase || to.weight || to.bias || to.weight_hh || to.bias_hh;
  Sum* dgates = workspace;
  Sum* dstates = to.states ? dgates + problem.count * problem.state_size * 4 : nullptr;
  Sum* partials = dgates + problem.count * problem.state_size * (to.states ? 5 : 4);
  if (tiles > 0) {
    launch(detail::ncache_read_backward_kernel<T>, dim3(static_cast<unsigned>(blocks)), dim3(detail::kNCacheThreads),
           detail::ncache_read_shared(problem), stream, problem, tiles, dz, dgates, dstates,
           parameters ? partials : nullptr);
  }
  if (parameters) {
    const unsigned grid = grid_of((layout.size + detail::kNCacheThreads - 1) / detail::kNCacheThreads);
    launch(detail::ncache_reduce_kernel<Sum>, dim3(grid), dim3(detail::kNCacheThreads), 0, stream, layout, blocks,
           partials, to);
  }
  if (to.states && num_rows > 0) {
    detail::ncache_add_rows(
        detail::NCacheStateRows<Sum>{dstates, nodes, problem.num_nodes, problem.count / num_rows * problem.state_size},
        num_rows, to.states, stream, chunk);
  }
  detail::ncache_add_rows(
      detail::NCacheFeatureRows<T>{problem, dgates, problem.keys, problem.num_nodes, problem.node_width, 0},
      problem.count, to.node_features, stream, chunk);
  detail::ncache_add_rows(detail::NCacheFeatureRows<T>{problem, dgates, problem.event_ids, problem.num_events,
                                                       problem.edge_width, problem.node_width},
                          problem.count, to.edge_features, stream, chunk);
}

}  // namespace anabranch
