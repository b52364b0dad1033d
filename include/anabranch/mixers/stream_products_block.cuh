// The products of streams with the projection's weights on the GPU, with the sums of squares, in one read of the
// streams; where wanted, the streams are mixed on the way (post of the step before) and read (u, by coefficients that
// are there already: the single-pass form).
//
// A block takes 32 tokens, 24 products and a stretch of channels, in stages of 1 KB of sums per token (512 bytes beyond
// 4 mixed streams): all streams over
// some channels (or, plain, a row's neighbours) and the weights there, both in shared memory as float or double. Its
// 8 warps share out a stage's numbers, 16 bytes at a time; in a warp, a lane has 4 tokens and 6 products. At the end
// the warps' sums are added in order. What a stretch gives is one part of the result; coefficients.cuh adds up the
// parts.
//
// Bytes: the streams once per 24 products, from L2 after the first; 4 K bytes of weight per number of a token's streams
// and 32 tokens, from L2. FLOPs: 2 K N per token, K rounded up to 24, on the CUDA cores in float: at K = 24 and
// bfloat16 that is 107 us for 8192 tokens of N = 16384 at 60 TFLOP/s, half of what the bytes take at 4.3 TB/s in the
// fused form. Floor: the larger of the two, and a third over it for what leaves shared memory: 10 loads to 96
// multiply-adds.
#pragma once

#include "anabranch/mixers/stream_mix.cuh"
#include "anabranch/mixers/stream_products.hpp"

namespace anabranch {

namespace detail {

inline constexpr int kProductTokens = 32, kProductGroup = 24, kProductThreads = 256;
inline constexpr int kLaneTokens = 4, kLaneProducts = 6;
/// 16-byte pieces from one token's or product's sums to the next's in a stage, all but the last in use: odd, so that 8
/// of them lie in different banks, and such that tile and coefficients fit into 64 KB.
constexpr int stage_stride(int bound) { return bound == 8 ? 33 : 65; }

template <class T, int N, int kBound>
class ProductsBlock {
  using Sum = accumulate_t<T>;
  static constexpr int kPiece = 16 / static_cast<int>(sizeof(Sum)), kStride = stage_stride(kBound);
  static constexpr int kRow = kStride * kPiece, kChannels = (kStride - 1) * kPiece / kBound;
  using Piece = Vector<Sum, kPiece>;

 public:
  __device__ ProductsBlock(const StreamProducts<T>& problem_, SharedMemory shared)
      : problem(problem_),
        tile(SharedMemory(shared).take<Piece>((kProductTokens + kProductGroup) * kStride)),
        sums(SharedMemory(shared).take<Sum>((kProductTokens + kProductGroup) * kRow)),
        mix(shared_after_tile(shared)),
        channels(problem.part / problem.streams),
        groups((problem.products + kProductGroup - 1) / kProductGroup),
        group(blockIdx.x % groups),
        split(blockIdx.x / groups % problem.splits),
        first_row(blockIdx.x / groups / problem.splits * kProductTokens),
        row(first_row + threadIdx.x / 8) {}

  __device__ void run() {
    const int64_t stages = (channels + kChannels - 1) / kChannels;
    const int64_t begin = stages * split / problem.splits, end = stages * (split + 1) / problem.splits;
    const bool exists = row < problem.rows;
    if constexpr (kBound > 1) load_mix();
    if (problem.centered && exists) shift = sum_of(problem.x[row * problem.part]);
    for (int64_t stage = begin; stage < end; ++stage) {
      __syncthreads();
      for (int at = static_cast<int>(threadIdx.x) % 8 * N; at < kChannels; at += 8 * N) {
        stage_channels(stage * kChannels + at, at);
      }
      stage_weight(stage * kChannels);
      __syncthreads();
      multiply();
    }
    add_warps();
    for (int distance = 4; distance > 0; distance /= 2) {
      squares += __shfl_xor_sync(kAllLanes, squares, distance);
      total += __shfl_xor_sync(kAllLanes, total, distance);
    }
    if (group == 0 && exists && threadIdx.x % 8 == 0) {
      Sum* to = problem.parts + (split * problem.rows + row) * (problem.products + 3) + problem.products;
      to[0] = squares, to[1] = total, to[2] = shift;
    }
  }

 private:
  static __device__ SharedArray<Sum> shared_after_tile(SharedMemory shared) {
    shared.take<Sum>((kProductTokens + kProductGroup) * kRow);
    return shared.take<Sum>(kBound > 1 ? kProductTokens * kBound * (kBound + 2) : 1);
  }

  /// p, q and H of the block's tokens, as the coefficients lie.
  __device__ void load_mix() {
    const int64_t size = problem.streams * (problem.streams + 2);
    for (int64_t i = threadIdx.x; i < kProductTokens * size; i += kProductThreads) {
      const int64_t at = first_row * size + i;
      mix[i] = at < problem.rows * size ? problem.coefficients[at] : Sum(0);
    }
    __syncthreads();
  }

  /// N numbers of the streams on their way to the products; the widest stores that there are.
  __device__ void take(int position, const Vector<T, N>& values) {
    constexpr int kWide = N > 1 ? kPiece : 1;
    const int token = static_cast<int>(threadIdx.x) / 8;
#pragma unroll
    for (int first = 0; first < N; first += kWide) {
      Vector<Sum, kWide> wide;
#pragma unroll
      for (int k = 0; k < kWide; ++k) {
        wide.values[k] = sum_of(values.values[first + k]);
        const Sum d = wide.values[k] - shift;
        squares += d * d;
        total += d;
      }
      put(token * kRow + position + first, wide);
    }
  }
  template <int kWide>
  __device__ void put(int position, const Vector<Sum, kWide>& values) {
    if constexpr (kWide == 1) {
      sums[position] = values.values[0];
    } else {
      tile[position / kPiece] = values;
    }
  }

  /// N channels of this thread's row, in all streams; zeros where there are none.
  __device__ void stage_channels(int64_t channel, int at) {
    const int token = static_cast<int>(threadIdx.x) / 8;
    if (row >= problem.rows || channel >= channels) {
      for (int j = 0; j < problem.streams; ++j) {
        for (int k = 0; k < N; ++k) sums[token * kRow + j * kChannels + at + k] = Sum(0);
      }
      return;
    }
    const T* from = problem.x + row * problem.part + channel;
    if constexpr (kBound == 1) {
      const auto values = Vector<T, N>::load(from);
      take(at, values);
    } else {
      const int n = static_cast<int>(problem.streams), size = n * (n + 2);
      Vector<T, N> x[kBound], y{};
      Sum read[N] = {};
#pragma unroll
      for (int j = 0; j < kBound; ++j) {
        if (j < n) x[j] = Vector<T, N>::load(from + j * channels);
      }
      if (problem.y) y = Vector<T, N>::load(problem.y + row * channels + channel);
#pragma unroll
      for (int i = 0; i < kBound; ++i) {
        if (i >= n) break;
        Vector<T, N> mixed = x[i];
        if (problem.y) {
          Sum sum[N];
          const Sum q = mix[token * size + n + i];
#pragma unroll
          for (int k = 0; k < N; ++k) sum[k] = q * sum_of(y.values[k]);
#pragma unroll
          for (int j = 0; j < kBound; ++j) {
            if (j >= n) break;
            const Sum h = mix[token * size + (2 + i) * n + j];
#pragma unroll
            for (int k = 0; k < N; ++k) sum[k] += h * sum_of(x[j].values[k]);
          }
#pragma unroll
          for (int k = 0; k < N; ++k) mixed.values[k] = T(sum[k]);
          if (group == 0) mixed.store(problem.out + row * problem.part + i * channels + channel);
        }
        const Sum p = mix[token * size + i];
#pragma unroll
        for (int k = 0; k < N; ++k) read[k] += p * sum_of(mixed.values[k]);
        take(i * kChannels + at, mixed);
      }
      if (!problem.u || group != 0) return;
      Vector<T, N> u;
#pragma unroll
      for (int k = 0; k < N; ++k) u.values[k] = T(read[k]);
      u.store(problem.u + row * channels + channel);
    }
  }

  __device__ void stage_weight(int64_t channel) {
    constexpr int kWide = N > 1 ? kPiece : 1, kPieces = kChannels / kWide;
    const int count = kProductGroup * static_cast<int>(problem.streams) * kPieces;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kProductThreads) {
      const int at = i % kPieces * kWide, j = i / kPieces % static_cast<int>(problem.streams);
      const int k = i / kPieces / static_cast<int>(problem.streams);
      const int64_t product = group * kProductGroup + k;
      Vector<Sum, kWide> values{};
      if (product < problem.products && channel + at < channels) {
        values = Vector<Sum, kWide>::load(problem.weight + product * problem.part + j * channels + channel + at);
      }
      put((kProductTokens + k) * kRow + j * kChannels + at, values);
    }
  }

  __device__ void multiply() {
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    const int pieces = static_cast<int>(problem.streams) * (kChannels / kPiece);
    for (int piece = warp; piece < pieces; piece += kProductThreads / 32) {
      Piece x[kLaneTokens];
#pragma unroll
      for (int i = 0; i < kLaneTokens; ++i) x[i] = tile[(lane % 8 + 8 * i) * kStride + piece];
#pragma unroll
      for (int k = 0; k < kLaneProducts; ++k) {
        const Piece weight = tile[(kProductTokens + lane / 8 + 4 * k) * kStride + piece];
#pragma unroll
        for (int i = 0; i < kLaneTokens; ++i) {
#pragma unroll
          for (int c = 0; c < kPiece; ++c) products[i][k] += x[i].values[c] * weight.values[c];
        }
      }
    }
  }

  /// The warps' sums, in order, to this split's part.
  __device__ void add_warps() {
    constexpr int kCells = kProductTokens * kProductGroup;
    const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kLaneTokens; ++i) {
#pragma unroll
      for (int k = 0; k < kLaneProducts; ++k) {
        sums[warp * kCells + (lane % 8 + 8 * i) * kProductGroup + lane / 8 + 4 * k] = products[i][k];
      }
    }
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kCells; i += kProductThreads) {
      const int64_t to_row = first_row + i / kProductGroup, product = group * kProductGroup + i % kProductGroup;
      if (to_row >= problem.rows || product >= problem.products) continue;
      Sum sum = Sum(0);
      for (int w = 0; w < kProductThreads / 32; ++w) {
        const Sum term = sums[w * kCells + i];
        sum += term;
      }
      problem.parts[(split * problem.rows + to_row) * (problem.products + 3) + product] = sum;
    }
  }

  const StreamProducts<T>& problem;
  const SharedArray<Piece> tile;  // 32 rows of streams, then 24 of weight
  const SharedArray<Sum> sums;    // the same memory
  const SharedArray<Sum> mix;
  const int64_t channels, groups, group, split, first_row, row;
  Sum products[kLaneTokens][kLaneProducts] = {};
  Sum squares = 0, total = 0, shift = 0;
};

template <class T, int N, int kBound>
__global__ void __launch_bounds__(kProductThreads, 1) stream_products_kernel(StreamProducts<T> problem) {
  ProductsBlock<T, N, kBound>(problem, SharedMemory()).run();
}

}  // namespace detail
}  // namespace anabranch
