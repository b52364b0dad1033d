// The gradient of the projection's weights on the GPU, dweight[k, c] = sum over rows of g[row, k] x[row, c], and sums
// of parts in order.
//
// A block takes 24 products, 256 neighbouring numbers of the rows (128 doubles) and a chunk of rows; a thread 6
// products by 4 numbers (2 doubles), 16 bytes of sums. g of 32 rows lies in shared memory, x is read from where it is:
// four warps read the same piece, three of them from L1. A second launch adds up the chunks in order: no atomics.
//
// Bytes: x once per 24 products; K * part sums per chunk, written and read. FLOPs: 2 K per number of x, K rounded up to
// 24, on the CUDA cores in float. Floor: the larger of bytes / bandwidth and that; at K = 24 in 16 bits the arithmetic.
#pragma once

#include <algorithm>

#include "anabranch/mixers/stream_mix.cuh"

namespace anabranch {

template <class T>
struct StreamWeightGradient {
  using Sum = accumulate_t<T>;
  const T* x;    // [rows, part]
  const Sum* g;  // [rows, products]
  int64_t rows, part, products, chunks;
  Sum* parts;  // [chunks, products, part]
};

namespace detail {

inline constexpr int kGradientRows = 32, kGradientGroup = 24, kGradientProducts = 6;

/// Channels of a block of the kernel on tensor cores.
inline constexpr int kTensorStrip = 512;

/// In csrc/mixers/streams_bf16_sm90.cu, for bfloat16 (stream_dweight_sm90.cuh).
template <class T>
void stream_dweight_sm90(const StreamWeightGradient<T>& problem, T* split, cudaStream_t stream);

template <class T, int N>
__global__ void __launch_bounds__(256, 1) stream_dweight_kernel(StreamWeightGradient<T> problem) {
  using Sum = accumulate_t<T>;
  constexpr int kPiece = 16 / static_cast<int>(sizeof(Sum));
  const int64_t groups = (problem.products + kGradientGroup - 1) / kGradientGroup;
  const int64_t strips = (problem.part + 64 * kPiece - 1) / (64 * kPiece);
  const int64_t group = blockIdx.x % groups, strip = blockIdx.x / groups % strips, chunk = blockIdx.x / groups / strips;
  const int64_t begin = problem.rows * chunk / problem.chunks, end = problem.rows * (chunk + 1) / problem.chunks;
  const int64_t c = strip * 64 * kPiece + threadIdx.x % 64 * kPiece;
  const int slot = static_cast<int>(threadIdx.x) / 64 * kGradientProducts;
  SharedMemory shared;
  const SharedArray<Sum> gradients = shared.take<Sum>(kGradientRows * kGradientGroup);
  Sum sums[kGradientProducts][kPiece] = {};
  for (int64_t first = begin; first < end; first += kGradientRows) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kGradientRows * kGradientGroup; i += 256) {
      const int64_t row = first + i / kGradientGroup, k = group * kGradientGroup + i % kGradientGroup;
      gradients[i] = row < end && k < problem.products ? problem.g[row * problem.products + k] : Sum(0);
    }
    __syncthreads();
    const int here = static_cast<int>(end - first < kGradientRows ? end - first : kGradientRows);
#pragma unroll 4
    for (int r = 0; r < here; ++r) {
      Vector<Sum, kPiece> x;
      const T* from = problem.x + (first + r) * problem.part + c;
      if constexpr (N == 1) {
#pragma unroll
        for (int i = 0; i < kPiece; ++i) x.values[i] = c + i < problem.part ? sum_of(from[i]) : Sum(0);
      } else {
        const auto loaded = c < problem.part ? Vector<T, kPiece>::load(from) : Vector<T, kPiece>{};
#pragma unroll
        for (int i = 0; i < kPiece; ++i) x.values[i] = sum_of(loaded.values[i]);
      }
#pragma unroll
      for (int k = 0; k < kGradientProducts; ++k) {
        const Sum g = gradients[r * kGradientGroup + slot + k];
#pragma unroll
        for (int i = 0; i < kPiece; ++i) sums[k][i] += g * x.values[i];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kGradientProducts; ++k) {
    const int64_t product = group * kGradientGroup + slot + k;
    if (product >= problem.products) break;
#pragma unroll
    for (int i = 0; i < kPiece; ++i) {
      if (c + i < problem.part) problem.parts[(chunk * problem.products + product) * problem.part + c + i] = sums[k][i];
    }
  }
}

/// out[i] = sum over c of parts[c * stride + i], eight interleaved sums and then these, in order.
template <class V>
__global__ void __launch_bounds__(256)
    sum_parts_kernel(const V* parts, int64_t chunks, int64_t stride, int64_t count, V* out) {
  SharedMemory shared;
  const SharedArray<V> sums = shared.take<V>(256);
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x;
  V sum = V(0);
  for (int64_t chunk = threadIdx.y; i < count && chunk < chunks; chunk += 8) sum += parts[chunk * stride + i];
  sums[threadIdx.y * 32 + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || i >= count) return;
  for (int y = 1; y < 8; ++y) {
    const V other = sums[y * 32 + threadIdx.x];
    sum += other;
  }
  out[i] = sum;
}

template <class V>
void sum_parts_cuda(const V* parts, int64_t chunks, int64_t stride, int64_t count, V* out, cudaStream_t stream) {
  launch(sum_parts_kernel<V>, grid_of((count + 31) / 32), dim3(32, 8), shared_bytes<V>(256), stream, parts, chunks,
         stride, count, out);
}

}  // namespace detail

/// Chunks of rows: a function of the shape alone.
template <class T>
int64_t dweight_chunks(int64_t rows, int64_t products, int64_t part, bool hopper) {
  const bool tensor = hopper && std::is_same_v<T, bfloat16>;
  const int64_t strip = tensor ? detail::kTensorStrip : 256;
  const int64_t blocks =
      (part + strip - 1) / strip * ((products + detail::kGradientGroup - 1) / detail::kGradientGroup);
  return std::clamp<int64_t>((tensor ? 264 : 512) / blocks, 1, std::max<int64_t>(1, (rows + 255) / 256));
}

/// What the kernel on tensor cores keeps its second form of g in, counted in float.
template <class T>
int64_t split_gradients_size(int64_t rows, int64_t products) {
  return std::is_same_v<T, bfloat16> ? (products + 7) / 8 * 8 * ((rows + 15) / 16 * 16) : 0;
}

template <class T>
void stream_dweight_cuda(const StreamWeightGradient<T>& problem, accumulate_t<T>* split, bool hopper,
                         accumulate_t<T>* dweight, cudaStream_t stream) {
  using Sum = accumulate_t<T>;
  const int64_t count = problem.products * problem.part;
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (hopper && rows_are_aligned<T>(problem.part, {problem.x, split})) {
      detail::stream_dweight_sm90(problem, reinterpret_cast<T*>(split), stream);
      return detail::sum_parts_cuda(problem.parts, problem.chunks, count, count, dweight, stream);
    }
  }
  const int64_t width = 64 * 16 / static_cast<int64_t>(sizeof(Sum));
  const int64_t blocks = (problem.part + width - 1) / width *
                         ((problem.products + detail::kGradientGroup - 1) / detail::kGradientGroup) * problem.chunks;
  detail::dispatch_stream_width<T>(problem.part, {problem.x}, [&]<int N>() {
    launch(detail::stream_dweight_kernel<T, N>, grid_of(blocks), 256,
           shared_bytes<Sum>(detail::kGradientRows * detail::kGradientGroup), stream, problem);
  });
  detail::sum_parts_cuda(problem.parts, problem.chunks, count, count, dweight, stream);
}

}  // namespace anabranch
