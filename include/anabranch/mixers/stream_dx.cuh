// The gradient of the streams on the GPU: what comes from above, u's part, H^T of the streams after this step, and the
// norm's and the projection's, in one pass:
//
//   dx_j = dx_j + p_j du + sum_i H_ij dnext_i + sum_k g_k weight_kj - along (x_j - mean)
//
// A block takes some channels in all streams, 256 numbers of a token (128 doubles), and 128 tokens, 32 at a time. 24
// products' weights and g lie in shared memory, the weights for all of its tokens where there are no more products; a
// thread has 8 tokens by 16 bytes of sums.
//
// Bytes per token: dx, dnext, x of nC numbers each and C of du read, as far as given, nC written; 4 K bytes of weight
// per number and 128 tokens, from L2. FLOPs: 2 K + 2 n + 4 per number. Floor: the larger of bytes / bandwidth and those
// on the CUDA cores in float; at K = 24 and n = 4 about the same.
#pragma once

#include "anabranch/mixers/stream_mix.cuh"

namespace anabranch {

template <class T>
struct StreamInputGradient {
  using Sum = accumulate_t<T>;
  StreamShape shape;
  const T *x, *du, *dnext, *dx;          // each may be null but x
  const Sum *reads, *coefficients;       // [tokens, n (n + 2)]: whose p made u, and whose H mixes
  const Sum* weight;                     // [products, part] or null
  int64_t segments, products, num_kept;  // num_kept: the statistics' row
  const Sum *statistics, *g, *along;     // g [tokens, segments, products], along [tokens, segments]
  T* to;
};

namespace detail {

inline constexpr int kDxTokens = 32, kDxTiles = 4, kDxPieces = 64, kDxRows = 8;

/// Products at a time: 24, or 12 where sums are doubles, so that they fit into 64 KB for 8 segments too.
template <class Sum>
inline constexpr int kDxProducts = 96 / static_cast<int>(sizeof(Sum));

/// One 16-byte piece of sums from elements of T; scalar where rows are not aligned.
template <class T, int N, int kPiece>
__device__ Vector<accumulate_t<T>, kPiece> load_sums(const T* from, int64_t left) {
  using Sum = accumulate_t<T>;
  Vector<Sum, kPiece> out;
  if constexpr (N == 1) {
#pragma unroll
    for (int k = 0; k < kPiece; ++k) out.values[k] = k < left ? sum_of(from[k]) : Sum(0);
  } else {
    const auto loaded = Vector<T, kPiece>::load(from);
#pragma unroll
    for (int k = 0; k < kPiece; ++k) out.values[k] = sum_of(loaded.values[k]);
  }
  return out;
}

template <class Sum, int kPiece>
__device__ void add_scaled(Sum factor, const Vector<Sum, kPiece>& values, Vector<Sum, kPiece>& to) {
#pragma unroll
  for (int k = 0; k < kPiece; ++k) to.values[k] += factor * values.values[k];
}

template <class T, int N, int kBound>
__global__ void __launch_bounds__(256, 1) stream_dx_kernel(StreamInputGradient<T> problem) {
  using Sum = accumulate_t<T>;
  constexpr int kGroup = kDxProducts<Sum>, kPiece = 16 / static_cast<int>(sizeof(Sum)), kWidth = kDxPieces * kPiece,
                kChannels = kWidth / kBound;
  using Piece = Vector<Sum, kPiece>;
  SharedMemory shared;
  SharedMemory again = shared;
  const SharedArray<Sum> weight = shared.take<Sum>(kGroup * kWidth), g = shared.take<Sum>(kBound * kGroup * kDxTokens);
  const SharedArray<Piece> weight_pieces = again.take<Piece>(kGroup * kDxPieces);
  const SharedArray<Piece> g_pieces = again.take<Piece>(kBound * kGroup * kDxTokens / kPiece);
  const int64_t channels = problem.shape.channels, tokens = problem.shape.tokens, products = problem.products;
  const int n = static_cast<int>(problem.shape.streams), size = n * (n + 2), thread = static_cast<int>(threadIdx.x);
  const int64_t stretches = (channels + kChannels - 1) / kChannels, first_channel = blockIdx.x % stretches * kChannels;
  const int position = thread % kDxPieces * kPiece, stream = position / kChannels;
  const int64_t channel = first_channel + position % kChannels;
  const bool mine = stream < n && channel < channels;
  const int64_t segments = problem.segments, segment = segments == 1 ? 0 : stream;
  const int64_t groups = problem.weight ? (products + kGroup - 1) / kGroup : 0;
  const int row = thread / kDxPieces * kDxRows;
  for (int tile = 0; tile < kDxTiles; ++tile) {
    const int64_t first = (blockIdx.x / stretches * kDxTiles + tile) * kDxTokens;
    if (first >= tokens) return;
    Piece sums[kDxRows] = {};
    for (int64_t group = 0; group < groups; ++group) {
      __syncthreads();
      for (int i = thread; i < kGroup * kWidth && (groups > 1 || tile == 0); i += 256) {
        const int64_t k = group * kGroup + i / kWidth, j = i % kWidth / kChannels;
        const int64_t c = first_channel + i % kChannels;
        const bool exists = k < products && j < n && c < channels;
        const int64_t part = segments == 1 ? n * channels : channels, at = segments == 1 ? j * channels + c : c;
        weight[i] = exists ? problem.weight[k * part + at] : Sum(0);
      }
      for (int i = thread; i < static_cast<int>(segments) * kGroup * kDxTokens; i += 256) {
        const int64_t s = i / (kGroup * kDxTokens), k = group * kGroup + i / kDxTokens % kGroup;
        const int64_t t = first + i % kDxTokens;
        g[i] = k < products && t < tokens ? problem.g[(t * segments + s) * products + k] : Sum(0);
      }
      __syncthreads();
      for (int k = 0; mine && k < kGroup; ++k) {
        const Piece w = weight_pieces[k * kDxPieces + thread % kDxPieces];
#pragma unroll
        for (int i = 0; i < kDxRows; i += kPiece) {
          const Piece factors = g_pieces[((segment * kGroup + k) * kDxTokens + row + i) / kPiece];
#pragma unroll
          for (int r = 0; r < kPiece; ++r) add_scaled(factors.values[r], w, sums[i + r]);
        }
      }
    }
    if (!mine) continue;
    const int64_t left = channels - channel;
#pragma unroll
    for (int i = 0; i < kDxRows; ++i) {
      const int64_t t = first + row + i;
      if (t >= tokens) break;
      Piece& sum = sums[i];
      const int64_t at = (t * n + stream) * channels + channel;
      const auto piece = [&](const T* from) { return load_sums<T, N, kPiece>(from, left); };
      if (problem.dx) add_scaled(Sum(1), piece(problem.dx + at), sum);
      if (problem.du) add_scaled(problem.reads[t * size + stream], piece(problem.du + t * channels + channel), sum);
      for (int up = 0; problem.dnext && up < n; ++up) {
        add_scaled(problem.coefficients[t * size + (2 + up) * n + stream],
                   piece(problem.dnext + (t * n + up) * channels + channel), sum);
      }
      if (problem.weight) {
        const Sum along = problem.along[t * segments + segment];
        const Sum mean = problem.statistics[t * problem.num_kept + segments * products + 2 * segment + 1];
        const auto x = piece(problem.x + at);
#pragma unroll
        for (int k = 0; k < kPiece; ++k) sum.values[k] -= along * (x.values[k] - mean);
      }
      if constexpr (N == 1) {
        for (int k = 0; k < kPiece && k < left; ++k) problem.to[at + k] = T(sum.values[k]);
      } else {
        Vector<T, kPiece> out;
#pragma unroll
        for (int k = 0; k < kPiece; ++k) out.values[k] = T(sum.values[k]);
        out.store(problem.to + at);
      }
    }
  }
}

template <class T, int N, int kBound>
void launch_dx(const StreamInputGradient<T>& problem, cudaStream_t stream) {
  using Sum = accumulate_t<T>;
  constexpr int kGroup = kDxProducts<Sum>, kWidth = kDxPieces * 16 / static_cast<int>(sizeof(Sum));
  const int64_t stretches = (problem.shape.channels + kWidth / kBound - 1) / (kWidth / kBound);
  const int64_t tiles = (problem.shape.tokens + kDxTokens * kDxTiles - 1) / (kDxTokens * kDxTiles);
  constexpr size_t kShared = shared_bytes<Sum, Sum>(kGroup * kWidth, kBound * kGroup * kDxTokens);
  static_assert(kShared <= 64 * 1024, "what every architecture has");
  launch(stream_dx_kernel<T, N, kBound>, grid_of(stretches * tiles), 256, kShared, stream, problem);
}

}  // namespace detail

template <class T>
void stream_dx_cuda(const StreamInputGradient<T>& problem, cudaStream_t stream) {
  if (problem.shape.tokens == 0) return;
  detail::dispatch_stream_width<T>(problem.shape.channels,
                                   {problem.x, problem.du, problem.dnext, problem.dx, problem.to}, [&]<int N>() {
                                     if (problem.shape.streams <= 4) return detail::launch_dx<T, N, 4>(problem, stream);
                                     return detail::launch_dx<T, N, 8>(problem, stream);
                                   });
}

}  // namespace anabranch
