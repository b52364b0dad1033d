// Moving rows through a plan on the GPU: gather, combine, row products and selection of weights (reduce.hpp defines
// them).
//
// Layout: a block of 256 threads is x threads along a row times y rows (core/vector.cuh); a thread moves pieces of 16
// bytes, or single elements where rows are not aligned to 16 bytes. One thread writes each output element and sums run
// in entry order, so there is nothing to synchronise and the result does not depend on the schedule. row_dot alone
// works with a warp per row and a fixed shuffle tree.
// Bytes, with w = width * sizeof(T): gather 2w per entry, combine w per entry + w per item, row_dot 2w per entry; no
// arithmetic worth counting. Floor: bytes / bandwidth.
//
// The host never sees the plan's contents here, so ids out of range are made harmless instead of reported: such a row
// counts as zero.
#pragma once

#include "anabranch/core/vector.cuh"
#include "anabranch/plan/reduce.hpp"

namespace anabranch {

namespace detail {

template <class T, int N>
__global__ void __launch_bounds__(256)
    gather_kernel(const T* __restrict__ x, const accumulate_t<T>* __restrict__ weights,
                  const int32_t* __restrict__ item_ids, const int32_t* __restrict__ num_entries, int64_t num_items,
                  int64_t capacity, int64_t width, T* __restrict__ out) {
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (entry >= capacity) return;
  const int64_t item = entry < *num_entries ? item_ids[entry] : -1;
  const bool exists = item >= 0 && item < num_items;
  const T* from = x + (exists ? item : 0) * width;
  T* to = out + entry * width;
  const accumulate_t<T> weight = exists && weights ? weights[entry] : accumulate_t<T>(1);
#pragma unroll 4
  for (int64_t column = int64_t{threadIdx.x} * N; column < width; column += int64_t{blockDim.x} * N) {
    Vector<T, N> piece;
    if (exists) {
      piece = Vector<T, N>::load(from + column);
      if (weights) {
        for (T& value : piece.values) value = T(weight * static_cast<accumulate_t<T>>(value));
      }
    } else {
      for (T& value : piece.values) value = T(0.0f);
    }
    piece.store(to + column);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(256)
    combine_kernel(const T* __restrict__ values, const accumulate_t<T>* __restrict__ weights,
                   const int32_t* __restrict__ item_offsets, const int32_t* __restrict__ entry_ids, int64_t num_items,
                   int64_t capacity, int64_t width, T* __restrict__ out) {
  using Sum = accumulate_t<T>;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  if (item >= num_items) return;
  const int64_t begin = item_offsets[item] > 0 ? item_offsets[item] : 0;
  const int64_t end = item_offsets[item + 1] < capacity ? item_offsets[item + 1] : capacity;
  for (int64_t column = int64_t{threadIdx.x} * N; column < width; column += int64_t{blockDim.x} * N) {
    Sum sum[N] = {};
#pragma unroll 4
    for (int64_t i = begin; i < end; ++i) {
      const int64_t entry = entry_ids[i];
      if (entry < 0 || entry >= capacity) continue;
      const Sum weight = weights ? weights[entry] : Sum(1);
      const auto piece = Vector<T, N>::load(values + entry * width + column);
      for (int k = 0; k < N; ++k) sum[k] += weight * static_cast<Sum>(piece.values[k]);
    }
    Vector<T, N> result;
    for (int k = 0; k < N; ++k) result.values[k] = T(sum[k]);
    result.store(out + item * width + column);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(256)
    row_dot_kernel(const T* __restrict__ values, const T* __restrict__ x, const int32_t* __restrict__ item_ids,
                   const int32_t* __restrict__ num_entries, int64_t num_items, int64_t capacity, int64_t width,
                   accumulate_t<T>* __restrict__ out) {
  using Sum = accumulate_t<T>;
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;  // one warp
  if (entry >= capacity) return;
  const int64_t item = entry < *num_entries ? item_ids[entry] : -1;
  Sum sum = 0;
  if (item >= 0 && item < num_items) {
#pragma unroll 4
    for (int64_t column = int64_t{threadIdx.x} * N; column < width; column += 32 * N) {
      const auto left = Vector<T, N>::load(values + entry * width + column);
      const auto right = Vector<T, N>::load(x + item * width + column);
      for (int k = 0; k < N; ++k) sum += static_cast<Sum>(left.values[k]) * static_cast<Sum>(right.values[k]);
    }
  }
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(kAllLanes, sum, distance);
  if (threadIdx.x == 0) out[entry] = sum;
}

template <class T>
__global__ void select_kernel(const T* __restrict__ values, const int32_t* __restrict__ source_ids, int64_t num_values,
                              int64_t capacity, T* __restrict__ out) {
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (entry >= capacity) return;
  const int32_t source = source_ids[entry];
  out[entry] = source >= 0 && source < num_values ? values[source] : T(0.0f);
}

template <class T>
__global__ void select_backward_kernel(const T* __restrict__ grad, const int32_t* __restrict__ source_ids,
                                       int64_t num_values, int64_t capacity, T* __restrict__ out) {
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (entry >= capacity) return;
  const int32_t source = source_ids[entry];
  if (source >= 0 && source < num_values) out[source] = grad[entry];
}

}  // namespace detail

/// gather_reference; num_entries points to the plan's last offset on the device.
template <class T>
void gather_cuda(const T* x, const accumulate_t<T>* weights, const int32_t* item_ids, const int32_t* num_entries,
                 int64_t num_items, int64_t capacity, int64_t width, T* out, cudaStream_t stream) {
  if (capacity == 0 || width == 0) return;
  dispatch_vector_width<T>(width, {x, out}, [&]<int N>() {
    const dim3 block = row_block(width / N);
    launch(detail::gather_kernel<T, N>, row_grid(capacity, block), block, 0, stream, x, weights, item_ids, num_entries,
           num_items, capacity, width, out);
  });
}

/// combine_reference.
template <class T>
void combine_cuda(const T* values, const accumulate_t<T>* weights, const int32_t* item_offsets,
                  const int32_t* entry_ids, int64_t num_items, int64_t capacity, int64_t width, T* out,
                  cudaStream_t stream) {
  if (num_items == 0 || width == 0) return;
  dispatch_vector_width<T>(width, {values, out}, [&]<int N>() {
    const dim3 block = row_block(width / N);
    launch(detail::combine_kernel<T, N>, row_grid(num_items, block), block, 0, stream, values, weights, item_offsets,
           entry_ids, num_items, capacity, width, out);
  });
}

/// row_dot_reference, up to the order of the sum.
template <class T>
void row_dot_cuda(const T* values, const T* x, const int32_t* item_ids, const int32_t* num_entries, int64_t num_items,
                  int64_t capacity, int64_t width, accumulate_t<T>* out, cudaStream_t stream) {
  if (capacity == 0) return;
  dispatch_vector_width<T>(width, {values, x}, [&]<int N>() {
    const dim3 block(32, 8);
    launch(detail::row_dot_kernel<T, N>, row_grid(capacity, block), block, 0, stream, values, x, item_ids, num_entries,
           num_items, capacity, width, out);
  });
}

/// out[e] = values[source_ids[e]], 0 where the source is -1: a plan's weights from the builder's input.
template <class T>
void select_cuda(const T* values, const int32_t* source_ids, int64_t num_values, int64_t capacity, T* out,
                 cudaStream_t stream) {
  if (capacity == 0) return;
  launch(detail::select_kernel<T>, static_cast<unsigned>((capacity + 255) / 256), 256, 0, stream, values, source_ids,
         num_values, capacity, out);
}

/// out[source_ids[e]] = grad[e]; `out` comes filled with zeros, and no source appears twice.
template <class T>
void select_backward_cuda(const T* grad, const int32_t* source_ids, int64_t num_values, int64_t capacity, T* out,
                          cudaStream_t stream) {
  if (capacity == 0) return;
  launch(detail::select_backward_kernel<T>, static_cast<unsigned>((capacity + 255) / 256), 256, 0, stream, grad,
         source_ids, num_values, capacity, out);
}

}  // namespace anabranch
