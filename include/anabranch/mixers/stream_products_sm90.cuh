// The products of bfloat16 streams with the projection's weights on tensor cores (stream_products_block.cuh says what
// they are), straight from memory to registers: no shared memory but for the coefficients that mix.
//
// The weights are split once per call into bfloat16 hi + lo: 16 bits, so that products keep float's 24 but for 2^-17 of
// each weight. A warp takes 32 tokens (16 where it mixes) and 24 products. In 32 neighbouring channels lane q of a quad
// loads 8, 16 bytes, of each of its rows, and of the weight of its product; two mma.sync multiply them, which stand for
// the channels in the same order on both sides. A block's warps walk the same channels, so that seven of eight read the
// weights from L1. Mixed streams go from the sums to the product as they are rounded and stored. mma.sync and not
// wgmma: a Hopper warp waits for memory here, not for its tensor core.
//
// Bytes: the streams once per 24 products; the weights from L2 once per 256 tokens (128), 4 bytes each. FLOPs: 4 K N
// per token, 1 % of the tensor cores' peak at the bytes' speed. Floor: bytes / bandwidth.
#pragma once

#include "anabranch/core/mma.cuh"
#include "anabranch/mixers/stream_products.cuh"

namespace anabranch {

namespace detail {

/// hi and lo [padded, part]: weight = hi + lo; zeros from `products` on.
template <class T>
__global__ void __launch_bounds__(256)
    split_weight_kernel(const float* weight, int64_t products, int64_t padded, int64_t part, T* split) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= padded * part) return;
  const float value = i < products * part ? weight[i] : 0.0f;
  const T high(value);
  split[i] = high;
  split[padded * part + i] = T(value - static_cast<float>(high));
}

__device__ __forceinline__ float add_squares(const Channels& x, float sum, float shift, float& total) {
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const Pair pair = unpack_pair<bfloat16>(x.pairs[k]);
    const float first = pair.first - shift, second = pair.second - shift;
    sum += first * first + second * second;
    total += first + second;
  }
  return sum;
}

template <int kBound>
class TensorProducts {
  static constexpr int kTiles = tensor_tiles(kBound), kColumns = kProductGroup / 8;

 public:
  __device__ TensorProducts(const StreamProducts<bfloat16>& problem_, const bfloat16* split_weight, SharedMemory shared)
      : problem(problem_),
        mix(shared.take<float>(kBound > 1 ? blockDim.y * 16 * kBound * (kBound + 2) : 1)),
        lane(static_cast<int>(threadIdx.x)),
        channels(problem.part / problem.streams),
        groups((problem.products + kProductGroup - 1) / kProductGroup),
        group(blockIdx.x % groups),
        split(blockIdx.x / groups % problem.splits),
        first_row(blockIdx.x / groups / problem.splits * blockDim.y * 16 * kTiles),
        warp_row(first_row + threadIdx.y * 16 * kTiles),
        padded((problem.products + 7) / 8 * 8),
        weight(split_weight + (group * kProductGroup + lane / 4) * problem.part) {}

  __device__ void run() {
    if constexpr (kBound > 1) load_mix();
    if (warp_row >= problem.rows) return;
    const int64_t units = (channels + kTensorChannels - 1) / kTensorChannels;
    const int64_t begin = units * split / problem.splits, end = units * (split + 1) / problem.splits;
#pragma unroll
    for (int r = 0; r < 2 * kTiles; ++r) {
      if (problem.centered && exists(r)) shift[r] = static_cast<float>(problem.x[row(r) * problem.part]);
    }
#pragma unroll 2
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t channel = unit * kTensorChannels + lane % 4 * 8;
      if constexpr (kBound == 1) {
        Channels x[2 * kTiles];
#pragma unroll
        for (int r = 0; r < 2 * kTiles; ++r) {
          x[r] = load_channels(problem.x + row(r) * problem.part + channel, exists(r) && channel < channels);
        }
        multiply(x, channel, channel < channels);
      } else {
        mix_and_multiply(channel);
      }
    }
    write();
  }

 private:
  __device__ int64_t row(int r) const { return warp_row + lane / 4 + 8 * r; }
  __device__ bool exists(int r) const { return row(r) < problem.rows; }

  /// p, q and H of the block's tokens, as the coefficients lie.
  __device__ void load_mix() {
    const int64_t size = problem.streams * (problem.streams + 2), threads = blockDim.y * 32;
    for (int64_t i = threadIdx.y * 32 + threadIdx.x; i < blockDim.y * 16 * size; i += threads) {
      const int64_t at = first_row * size + i;
      mix[i] = at < problem.rows * size ? problem.coefficients[at] : 0.0f;
    }
    __syncthreads();
  }

  /// Rows r of `x` by the weights at `position` of a row of them.
  __device__ void multiply(const Channels (&x)[2 * kTiles], int64_t position, bool in_range) {
#pragma unroll
    for (int r = 0; r < 2 * kTiles; ++r) {
      if (exists(r) && in_range) squares[r] = add_squares(x[r], squares[r], shift[r], totals[r]);
    }
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      if (group * kProductGroup + 8 * column >= padded) break;
#pragma unroll
      for (int part = 0; part < 2; ++part) {
        const auto w = load_channels(weight + (part * padded + 8 * column) * problem.part + position, in_range);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          const uint32_t (&low)[4] = x[2 * tile].pairs, (&high)[4] = x[2 * tile + 1].pairs;
          mma_bfloat16(sums[tile][column], {low[0], high[0], low[1], high[1]}, {w.pairs[0], w.pairs[1]});
          mma_bfloat16(sums[tile][column], {low[2], high[2], low[3], high[3]}, {w.pairs[2], w.pairs[3]});
        }
      }
    }
  }

  __device__ void mix_and_multiply(int64_t channel) {
    const int n = static_cast<int>(problem.streams), size = n * (n + 2);
    const bool in_range = channel < channels;
    Channels x[2][kBound], y[2] = {};
    float read[2][8] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool here = exists(r) && in_range;
#pragma unroll
      for (int j = 0; j < kBound; ++j) {
        x[r][j] = load_channels(problem.x + row(r) * problem.part + j * channels + channel, here && j < n);
      }
      if (problem.y) y[r] = load_channels(problem.y + row(r) * channels + channel, here);
    }
#pragma unroll
    for (int i = 0; i < kBound; ++i) {
      if (i >= n) break;
      Channels mixed[2] = {x[0][i], x[1][i]};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int64_t at = (row(r) - first_row) * size;
        if (problem.y) {
          float sum[8] = {};
          const float q = mix[at + n + i];
          add_scaled(q, y[r], sum);
#pragma unroll
          for (int j = 0; j < kBound; ++j) {
            if (j >= n) break;
            const float h = mix[at + (2 + i) * n + j];
            add_scaled(h, x[r][j], sum);
          }
#pragma unroll
          for (int k = 0; k < 4; ++k) mixed[r].pairs[k] = pack_pair<bfloat16>({sum[2 * k], sum[2 * k + 1]});
          if (group == 0 && exists(r) && in_range) {
            store_pairs(problem.out + row(r) * problem.part + i * channels + channel, mixed[r].pairs);
          }
        }
        const float p = mix[at + i];
        add_scaled(p, mixed[r], read[r]);
      }
      multiply(mixed, i * channels + channel, in_range);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!problem.u || group != 0 || !exists(r) || !in_range) continue;
      uint32_t pairs[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) pairs[k] = pack_pair<bfloat16>({read[r][2 * k], read[r][2 * k + 1]});
      store_pairs(problem.u + row(r) * channels + channel, pairs);
    }
  }

  static __device__ __forceinline__ void add_scaled(float factor, const Channels& x, float (&to)[8]) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const Pair pair = unpack_pair<bfloat16>(x.pairs[k]);
      to[2 * k] += factor * pair.first;
      to[2 * k + 1] += factor * pair.second;
    }
  }

  __device__ void write() {
#pragma unroll
    for (int r = 0; r < 2 * kTiles; ++r) {
      float square = squares[r], total = totals[r];
      for (int distance = 1; distance < 4; distance *= 2) {
        square += __shfl_xor_sync(kAllLanes, square, distance);
        total += __shfl_xor_sync(kAllLanes, total, distance);
      }
      if (!exists(r)) continue;
      float* to = problem.parts + (split * problem.rows + row(r)) * (problem.products + 3);
#pragma unroll
      for (int column = 0; column < kColumns; ++column) {
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const int64_t product = group * kProductGroup + 8 * column + lane % 4 * 2 + k;
          if (product < problem.products) to[product] = sums[r / 2][column][r % 2 * 2 + k];
        }
      }
      if (group != 0 || lane % 4 != 0) continue;
      to += problem.products;
      to[0] = square, to[1] = total, to[2] = shift[r];
    }
  }

  const StreamProducts<bfloat16>& problem;
  const SharedArray<float> mix;
  const int lane;
  const int64_t channels, groups, group, split, first_row, warp_row, padded;
  const bfloat16* const weight;
  float sums[kTiles][kColumns][4] = {}, squares[2 * kTiles] = {}, totals[2 * kTiles] = {}, shift[2 * kTiles] = {};
};

template <int kBound>
__global__ void __launch_bounds__(32 * kTensorWarps, kBound == 1 ? 2 : 1)
    stream_products_sm90_kernel(StreamProducts<bfloat16> problem, const bfloat16* split_weight) {
  TensorProducts<kBound>(problem, split_weight, SharedMemory()).run();
}

template <int kBound>
void launch_products_sm90(const StreamProducts<bfloat16>& problem, const bfloat16* split_weight, cudaStream_t stream) {
  const int64_t tokens = tensor_tokens(problem.rows, kBound), warps = tokens / (16 * tensor_tiles(kBound));
  const int64_t blocks =
      (problem.rows + tokens - 1) / tokens * ((problem.products + kProductGroup - 1) / kProductGroup);
  launch(stream_products_sm90_kernel<kBound>, static_cast<unsigned>(blocks * problem.splits),
         dim3(32, static_cast<unsigned>(warps)),
         shared_bytes<float>(kBound > 1 ? warps * 16 * kBound * (kBound + 2) : 1), stream, problem, split_weight);
}

template <class T>
void stream_products_sm90(const StreamProducts<T>& problem, T* split_weight, cudaStream_t stream) {
  static_assert(std::is_same_v<T, bfloat16>);
  const int64_t padded = (problem.products + 7) / 8 * 8;
  launch(split_weight_kernel<T>, grid_of((padded * problem.part + 255) / 256), 256, 0, stream, problem.weight,
         problem.products, padded, problem.part, split_weight);
  if (!problem.coefficients) return launch_products_sm90<1>(problem, split_weight, stream);
  if (problem.streams <= 4) return launch_products_sm90<4>(problem, split_weight, stream);
  launch_products_sm90<8>(problem, split_weight, stream);
}

}  // namespace detail
}  // namespace anabranch
