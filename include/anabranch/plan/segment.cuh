// Segment reductions over the groups of a plan on the GPU, and their backward (reduce.hpp defines them).
//
// Layout: a block reduces a strip of columns of one group. Its 256 threads are x pieces of a row times y rows; row lane
// y takes entries begin + y, begin + 2y .. in order, then the lanes are merged through shared memory in ascending
// order. The order of a sum so depends on the width alone, and max and min are exact with ties and NaN settled by entry
// number: results are the same in every run. Bytes: the rows of all groups once, and the result. Shared memory: 256 * N
// * (accumulator + entry number). Floor: bytes / bandwidth as long as groups times strips fill the GPU; few long groups
// run at the pace of few blocks.
#pragma once

#include "anabranch/core/vector.cuh"
#include "anabranch/plan/offsets.cuh"
#include "anabranch/plan/reduce.hpp"

namespace anabranch {

namespace detail {

ANABRANCH_HOST_DEVICE inline bool selects(Reduction reduction) {
  return reduction == Reduction::max || reduction == Reduction::min;
}

/// What one row lane knows of one column: a sum.
template <class Sum>
struct SumLane {
  Sum value = 0;

  __device__ void take(Reduction, Sum other, int32_t) { value += other; }
  __device__ int32_t entry() const { return -1; }
};

/// Or a value on its way to winning the group, and the entry it comes from; -1 before the first.
template <class Sum>
struct WinnerLane {
  Sum value = 0;
  int32_t winner = -1;

  /// Takes the other value if it is better, or equal and earlier; two NaN count as equal.
  __device__ void take(Reduction reduction, Sum other, int32_t entry) {
    if (entry < 0) return;
    const bool equal = other == value || (value != value && other != other);
    const bool wins = winner < 0 || (equal ? entry < winner : replaces(reduction, other, value));
    value = wins ? other : value;
    winner = wins ? entry : winner;
  }
  __device__ int32_t entry() const { return winner; }
};

template <class T, int N, class Lane>
__global__ void __launch_bounds__(256)
    segment_reduce_kernel(const T* __restrict__ values, const int32_t* __restrict__ group_offsets, int64_t capacity,
                          int64_t width, int64_t strips, Reduction reduction, T* __restrict__ out,
                          int32_t* __restrict__ arg) {
  using Sum = accumulate_t<T>;
  SharedMemory shared;
  const SharedArray<Sum> lane_values = shared.take<Sum>(256 * N);
  const SharedArray<int32_t> lane_entries = shared.take<int32_t>(256 * N);
  const int thread = static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x);
  const int64_t group = blockIdx.x / strips;
  const int64_t begin = group_offsets[group] > 0 ? group_offsets[group] : 0;
  const int64_t end = group_offsets[group + 1] < capacity ? group_offsets[group + 1] : capacity;
  const Sum divisor = reduction == Reduction::mean && end > begin ? static_cast<Sum>(end - begin) : Sum(1);
  const int64_t column = (blockIdx.x % strips * blockDim.x + threadIdx.x) * N;
  Lane lane[N];
  if (column < width) {
    for (int64_t entry = begin + threadIdx.y; entry < end; entry += blockDim.y) {
      const auto piece = Vector<T, N>::load(values + entry * width + column);
#pragma unroll
      for (int k = 0; k < N; ++k) {
        lane[k].take(reduction, static_cast<Sum>(piece.values[k]), static_cast<int32_t>(entry));
      }
    }
  }
#pragma unroll
  for (int k = 0; k < N; ++k) {
    lane_values[k * 256 + thread] = lane[k].value;
    lane_entries[k * 256 + thread] = lane[k].entry();
  }
  __syncthreads();
  if (threadIdx.y > 0 || column >= width) return;

  for (unsigned y = 1; y < blockDim.y; ++y) {
    const int other = thread + static_cast<int>(y * blockDim.x);
#pragma unroll
    for (int k = 0; k < N; ++k) {
      lane[k].take(reduction, lane_values[k * 256 + other], lane_entries[k * 256 + other]);
    }
  }
  Vector<T, N> result;
#pragma unroll
  for (int k = 0; k < N; ++k) {
    result.values[k] = T(lane[k].value / divisor);
    if (arg) arg[group * width + column + k] = lane[k].entry();
  }
  result.store(out + group * width + column);
}

template <class T, int N>
__global__ void __launch_bounds__(256)
    segment_reduce_backward_kernel(const T* __restrict__ dout, const int32_t* __restrict__ arg,
                                   const int32_t* __restrict__ group_offsets, int64_t num_groups, int64_t capacity,
                                   int64_t width, Reduction reduction, T* __restrict__ dvalues) {
  using Sum = accumulate_t<T>;
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (entry >= capacity) return;
  const bool exists = entry < group_offsets[num_groups];
  const int64_t group = exists ? group_of_entry(group_offsets, num_groups, entry) : 0;
  const Sum divisor = exists && reduction == Reduction::mean
                          ? static_cast<Sum>(group_offsets[group + 1] - group_offsets[group])
                          : Sum(1);
  for (int64_t column = int64_t{threadIdx.x} * N; column < width; column += int64_t{blockDim.x} * N) {
    Vector<T, N> piece;
    for (T& value : piece.values) value = T(0.0f);
    if (exists) {
      const auto upstream = Vector<T, N>::load(dout + group * width + column);
      for (int k = 0; k < N; ++k) {
        const bool takes_part = !selects(reduction) || arg[group * width + column + k] == entry;
        if (takes_part) piece.values[k] = T(static_cast<Sum>(upstream.values[k]) / divisor);
      }
    }
    piece.store(dvalues + entry * width + column);
  }
}

}  // namespace detail

/// segment_reduce_reference, up to the order of a sum; arg may be null for sum and mean.
template <class T>
void segment_reduce_cuda(const T* values, const int32_t* group_offsets, int64_t num_groups, int64_t capacity,
                         int64_t width, Reduction reduction, T* out, int32_t* arg, cudaStream_t stream) {
  if (num_groups == 0 || width == 0) return;
  dispatch_vector_width<T>(width, {values, out}, [&]<int N>() {
    const dim3 block = row_block(width / N, 32);
    const int64_t strips = (width / N + block.x - 1) / block.x;
    using Sum = accumulate_t<T>;
    const auto kernel = detail::selects(reduction) ? detail::segment_reduce_kernel<T, N, detail::WinnerLane<Sum>>
                                                   : detail::segment_reduce_kernel<T, N, detail::SumLane<Sum>>;
    launch(kernel, grid_of(num_groups * strips), block, shared_bytes<Sum, int32_t>(256 * N, 256 * N), stream, values,
           group_offsets, capacity, width, strips, reduction, out, arg);
  });
}

/// segment_reduce_backward_reference.
template <class T>
void segment_reduce_backward_cuda(const T* dout, const int32_t* arg, const int32_t* group_offsets, int64_t num_groups,
                                  int64_t capacity, int64_t width, Reduction reduction, T* dvalues,
                                  cudaStream_t stream) {
  if (capacity == 0 || width == 0) return;
  dispatch_vector_width<T>(width, {dout, dvalues}, [&]<int N>() {
    const dim3 block = row_block(width / N);
    launch(detail::segment_reduce_backward_kernel<T, N>, row_grid(capacity, block), block, 0, stream, dout, arg,
           group_offsets, num_groups, capacity, width, reduction, dvalues);
  });
}

}  // namespace anabranch
