// The gradient of the projection's weights from bfloat16 streams on tensor cores (stream_dweight.cuh says what it is),
// straight from memory to registers: dweight^T [part, products] = x^T g.
//
// g is first transposed and split into bfloat16 hi + lo, 4 bytes per number, so that its 24 bits are kept but for
// 2^-17. A warp takes 64 channels, 24 products and a chunk of rows, 16 rows at a time: lane q of a quad loads 8
// channels of 4 rows, and interleaves the rows in pairs, which are the neighbours along k that mma.sync wants. The 8
// warps of a block lie side by side and read the same g, from L1 after the first.
//
// Bytes: x once per 24 products; g from L2 once per 512 channels; K * part sums per chunk, written and read. FLOPs: 4 K
// per number of x, 1 % of the tensor cores' peak at the bytes' speed. Floor: bytes / bandwidth.
#pragma once

#include "anabranch/core/mma.cuh"
#include "anabranch/mixers/stream_dweight.cuh"

namespace anabranch::detail {

/// hi and lo [padded, padded_rows] of g [rows, products], transposed; zeros beyond.
template <class T>
__global__ void __launch_bounds__(256)
    split_gradients_kernel(StreamWeightGradient<T> problem, int64_t padded, int64_t padded_rows, T* split) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= padded * padded_rows) return;
  const int64_t product = i / padded_rows, row = i % padded_rows;
  const bool exists = product < problem.products && row < problem.rows;
  const float value = exists ? problem.g[row * problem.products + product] : 0.0f;
  const T high(value);
  split[i] = high;
  split[padded * padded_rows + i] = T(value - static_cast<float>(high));
}

/// Halves of two words as pairs: the lower ones, or the upper ones.
__device__ __forceinline__ uint32_t lower_halves(uint32_t first, uint32_t second) {
  return (first & 0xffffu) | second << 16;
}
__device__ __forceinline__ uint32_t upper_halves(uint32_t first, uint32_t second) {
  return first >> 16 | (second & 0xffff0000u);
}

template <class T>
__global__ void __launch_bounds__(256, 2)
    stream_dweight_sm90_kernel(StreamWeightGradient<T> problem, const T* split, int64_t padded, int64_t padded_rows) {
  constexpr int kColumns = kGradientGroup / 8;
  const int lane = static_cast<int>(threadIdx.x), q = lane % 4;
  const int64_t groups = (problem.products + kGradientGroup - 1) / kGradientGroup;
  const int64_t strips = (problem.part + kTensorStrip - 1) / kTensorStrip;
  const int64_t group = blockIdx.x % groups, strip = blockIdx.x / groups % strips, chunk = blockIdx.x / groups / strips;
  const int64_t channel = strip * kTensorStrip + threadIdx.y * 64 + lane / 4 * 8, units = padded_rows / 16;
  const int64_t begin = units * chunk / problem.chunks, end = units * (chunk + 1) / problem.chunks;
  const T* gradients = split + (group * kGradientGroup + lane / 4) * padded_rows + 4 * q;
  float sums[4][kColumns][4] = {};
#pragma unroll 2
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t row = unit * 16 + 4 * q;
    Channels x[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      x[r] = load_channels(problem.x + (row + r) * problem.part + channel,
                           row + r < problem.rows && channel < problem.part);
    }
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      if (group * kGradientGroup + 8 * column >= padded) break;
#pragma unroll
      for (int half_of = 0; half_of < 2; ++half_of) {
        const auto g = Vector<uint32_t, 2>::load(
            reinterpret_cast<const uint32_t*>(gradients + (half_of * padded + 8 * column) * padded_rows + unit * 16));
#pragma unroll
        for (int pair = 0; pair < 4; ++pair) {
          const uint32_t w[4] = {x[0].pairs[pair], x[1].pairs[pair], x[2].pairs[pair], x[3].pairs[pair]};
          mma_bfloat16(
              sums[pair][column],
              {lower_halves(w[0], w[1]), upper_halves(w[0], w[1]), lower_halves(w[2], w[3]), upper_halves(w[2], w[3])},
              {g.values[0], g.values[1]});
        }
      }
    }
  }
  if (channel >= problem.part) return;
#pragma unroll
  for (int column = 0; column < kColumns; ++column) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      const int64_t product = group * kGradientGroup + 8 * column + 2 * q + k;
      if (product >= problem.products) continue;
      float* to = problem.parts + (chunk * problem.products + product) * problem.part + channel;
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        to[2 * pair] = sums[pair][column][k];
        to[2 * pair + 1] = sums[pair][column][2 + k];
      }
    }
  }
}

template <class T>
void stream_dweight_sm90(const StreamWeightGradient<T>& problem, T* split, cudaStream_t stream) {
  const int64_t padded = (problem.products + 7) / 8 * 8, padded_rows = (problem.rows + 15) / 16 * 16;
  const int64_t groups = (problem.products + kGradientGroup - 1) / kGradientGroup;
  if (padded_rows > 0) {
    launch(split_gradients_kernel<T>, grid_of((padded * padded_rows + 255) / 256), 256, 0, stream, problem, padded,
           padded_rows, split);
  }
  launch(stream_dweight_sm90_kernel<T>,
         grid_of((problem.part + kTensorStrip - 1) / kTensorStrip * groups * problem.chunks), dim3(32, 8), 0, stream,
         problem, split, padded, padded_rows);
}

}  // namespace anabranch::detail
