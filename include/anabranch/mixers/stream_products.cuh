// The products of streams with the projection's weights on the GPU: which kernel makes them, and in how many parts.
#pragma once

#include <algorithm>

#include "anabranch/mixers/stream_products_block.cuh"

namespace anabranch {

namespace detail {

// Of the kernel on tensor cores: warps of a block, channels of a unit, and 16-token tiles of a warp.
inline constexpr int kTensorWarps = 8, kTensorChannels = 32;
constexpr int tensor_tiles(int64_t streams) { return streams == 1 ? 2 : 1; }

/// Tokens of a block: no more warps than there are tokens for.
inline int64_t tensor_tokens(int64_t rows, int64_t streams) {
  const int64_t tokens = 16 * tensor_tiles(streams);
  return std::clamp<int64_t>((rows + tokens - 1) / tokens, 1, kTensorWarps) * tokens;
}

/// In csrc/mixers/streams_bf16_sm90.cu, for bfloat16 (stream_products_sm90.cuh). split_weight: split_weight_size()
/// numbers at a multiple of 16 bytes.
template <class T>
void stream_products_sm90(const StreamProducts<T>& problem, T* split_weight, cudaStream_t stream);

/// The weights as two of bfloat16, rows rounded up to 8, counted in float.
template <class T>
int64_t split_weight_size(int64_t products, int64_t part) {
  return std::is_same_v<T, bfloat16> ? (products + 7) / 8 * 8 * part : 0;
}

template <class T, int N, int kBound>
void launch_products(const StreamProducts<T>& problem, cudaStream_t stream) {
  using Sum = accumulate_t<T>;
  constexpr int kTile = (kProductTokens + kProductGroup) * stage_stride(kBound) * (16 / static_cast<int>(sizeof(Sum)));
  const int64_t tiles = (problem.rows + kProductTokens - 1) / kProductTokens;
  const int64_t groups = (problem.products + kProductGroup - 1) / kProductGroup;
  constexpr size_t kShared = shared_bytes<Sum, Sum>(kTile, kBound > 1 ? kProductTokens * kBound * (kBound + 2) : 1);
  static_assert(kShared <= 64 * 1024, "what every architecture has");
  launch(stream_products_kernel<T, N, kBound>, grid_of(tiles * problem.splits * groups), kProductThreads, kShared,
         stream, problem);
}

}  // namespace detail

/// Stretches of channels, so that few tokens keep a GPU busy too: a function of the shape alone. `streams` is 1 where
/// the streams are not mixed.
template <class T>
int64_t product_splits(int64_t rows, int64_t products, int64_t part, int64_t streams, bool hopper) {
  const bool tensor = hopper && std::is_same_v<T, bfloat16>;
  const int64_t tokens = tensor ? detail::tensor_tokens(rows, streams) : detail::kProductTokens;
  const int64_t groups = (products + detail::kProductGroup - 1) / detail::kProductGroup;
  const int64_t blocks = std::max<int64_t>(1, (rows + tokens - 1) / tokens * groups);
  const int64_t stage = tensor ? 2 * detail::kTensorChannels : streams == 1 ? 256 : streams <= 4 ? 64 : 16;
  return std::clamp<int64_t>(std::min<int64_t>((tensor ? 264 : 512) / blocks, 64), 1,
                             (part / streams + stage - 1) / stage);
}

/// split_weight: split_weight_size() floats where `hopper`.
template <class T>
void stream_products_cuda(const StreamProducts<T>& problem, accumulate_t<T>* split_weight, bool hopper,
                          cudaStream_t stream) {
  if (problem.rows == 0) return;
  const int64_t channels = problem.part / problem.streams;
  if constexpr (std::is_same_v<T, bfloat16>) {
    if (hopper && rows_are_aligned<T>(channels, {problem.x, problem.y, problem.out, problem.u, split_weight})) {
      return detail::stream_products_sm90(problem, reinterpret_cast<T*>(split_weight), stream);
    }
  }
  detail::dispatch_stream_width<T>(channels, {problem.x, problem.y, problem.weight, problem.out, problem.u},
                                   [&]<int N>() {
                                     if (!problem.coefficients)
                                       return detail::launch_products<T, N, 1>(problem, stream);
                                     if (problem.streams <= 4) return detail::launch_products<T, N, 4>(problem, stream);
                                     return detail::launch_products<T, N, 8>(problem, stream);
                                   });
}

}  // namespace anabranch
