// Ordered scatters (ordered_scatter.hpp defines them) on the GPU: a warp for each position, and the warp of a row's
// first position of the stretch (of its last, where the last one wins) does the row's work, lanes over columns.
//
// Bytes: the definition's, and the index from L2 as node_warp.cuh counts it; rows wider than 256 walk the index once
// for each 256 columns. latest_of_node compares all positions with all: n^2 / 32 loads of 32 lanes. Floor: bytes /
// bandwidth for wide rows, latency of the walk for a row that everybody names.
#pragma once

#include <algorithm>

#include "anabranch/core/vector.cuh"
#include "anabranch/temporal/node_warp.cuh"
#include "anabranch/temporal/ordered_scatter.hpp"

namespace anabranch {

namespace detail {

inline constexpr int kScatterWarps = 4;

/// The position of this warp in [begin, end), or end.
__device__ inline int64_t warp_position(int64_t begin, int64_t end) {
  const int64_t at = begin + static_cast<int64_t>(blockIdx.x) * kScatterWarps + threadIdx.x / 32;
  return at < end ? at : end;
}

/// Columns are those of a lane: its share of K * 32 columns at a time.
template <class T, int K>
__global__ void __launch_bounds__(32 * kScatterWarps, 1)
    ordered_scatter_add_kernel(OrderedScatterAdd<T> problem, int64_t begin, int64_t end) {
  using Sum = sum_t<T>;
  const int64_t position = warp_position(begin, end), width = problem.width;
  if (position == end) return;
  const auto row_at = [&](int64_t p) { return problem.row(p); };
  const int64_t row = row_at(position);
  if (row == no_node || !is_first_of_node(row_at, begin, position, row)) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int64_t from = lane; from < (width + 31) / 32 * 32; from += 32 * K) {
    Sum sums[K];
    for_each_of_node(row_at, position, end, row, [&](int64_t p) {
      const Sum weight = problem.weight(p);
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int64_t c = from + 32 * k;
        const Sum term = c < width ? rounded_product(weight, static_cast<Sum>(problem.values[p * width + c])) : Sum(0);
        sums[k] = p == position ? term : sums[k] + term;
      }
    });
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int64_t c = from + 32 * k;
      if (c < width) {
        T& cell = problem.table[row * width + c];
        cell = T(static_cast<Sum>(cell) + sums[k]);
      }
    }
  }
}

template <class Word>
__global__ void __launch_bounds__(32 * kScatterWarps, 1)
    ordered_scatter_kernel(OrderedScatter problem, int64_t begin, int64_t end) {
  const int64_t position = warp_position(begin, end);
  if (position == end) return;
  const auto row_at = [&](int64_t p) { return problem.row(p); };
  const int64_t row = row_at(position);
  if (row == no_node || !is_first_of_node(row_at, position + 1, end, row)) return;  // nobody behind it: the last one
  const int64_t words = problem.row_bytes / static_cast<int64_t>(sizeof(Word));
  auto* to = static_cast<Word*>(problem.table) + row * words;
  const auto* from = static_cast<const Word*>(problem.values) + position * words;
  for (int64_t w = threadIdx.x % 32; w < words; w += 32) to[w] = from[w];
}

template <class Flag>
__global__ void __launch_bounds__(32 * kScatterWarps, 1) latest_of_node_kernel(NodeEvents events, Flag* latest) {
  const int64_t position = warp_position(0, events.size);
  if (position == events.size) return;
  const int64_t node = events.nodes[position];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  bool is_latest = node >= 0;
  for (int64_t base = 0; is_latest && base < events.size; base += 32) {
    const int64_t p = base + lane;
    const bool later = p < events.size && p != position && events.nodes[p] == node && events.precedes(position, p);
    is_latest = __ballot_sync(kAllLanes, later) == 0;
  }
  if (lane == 0) latest[position] = is_latest;
}

inline dim3 scatter_grid(int64_t positions) { return dim3(grid_of((positions + kScatterWarps - 1) / kScatterWarps)); }

/// f(begin, end) for every stretch of [0, size): a launch, behind the one before on the stream.
template <class F>
void for_each_stretch(int64_t size, int64_t stretch, F&& f) {
  for (int64_t begin = 0; begin < size; begin += stretch) f(begin, std::min(size, begin + stretch));
}

}  // namespace detail

/// ordered_scatter_add_reference, bit for bit.
template <class T>
void ordered_scatter_add_cuda(const OrderedScatterAdd<T>& problem, cudaStream_t stream,
                              int64_t stretch = ordered_scatter_stretch) {
  if (problem.width == 0) return;
  const auto kernel =
      problem.width <= 64 ? detail::ordered_scatter_add_kernel<T, 2> : detail::ordered_scatter_add_kernel<T, 8>;
  detail::for_each_stretch(problem.size, stretch, [&](int64_t begin, int64_t end) {
    launch(kernel, detail::scatter_grid(end - begin), dim3(32 * detail::kScatterWarps), 0, stream, problem, begin, end);
  });
}

/// ordered_scatter_reference.
inline void ordered_scatter_cuda(const OrderedScatter& problem, cudaStream_t stream,
                                 int64_t stretch = ordered_scatter_stretch) {
  if (problem.row_bytes == 0) return;
  const auto fits = [&](uintptr_t bytes) {
    return (reinterpret_cast<uintptr_t>(problem.table) | reinterpret_cast<uintptr_t>(problem.values) |
            static_cast<uintptr_t>(problem.row_bytes)) %
               bytes ==
           0;
  };
  const auto kernel = fits(8)   ? detail::ordered_scatter_kernel<uint64_t>
                      : fits(4) ? detail::ordered_scatter_kernel<uint32_t>
                                : detail::ordered_scatter_kernel<uint8_t>;
  detail::for_each_stretch(problem.size, stretch, [&](int64_t begin, int64_t end) {
    launch(kernel, detail::scatter_grid(end - begin), dim3(32 * detail::kScatterWarps), 0, stream, problem, begin, end);
  });
}

/// latest_of_node_reference.
inline void latest_of_node_cuda(const NodeEvents& events, bool* latest, cudaStream_t stream) {
  if (events.size == 0) return;
  launch(detail::latest_of_node_kernel<bool>, detail::scatter_grid(events.size), dim3(32 * detail::kScatterWarps), 0,
         stream, events, latest);
}

}  // namespace anabranch
