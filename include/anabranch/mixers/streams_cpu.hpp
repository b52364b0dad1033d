// The stream step on the CPU, forward: tiles of tokens that stay in the second-level cache from the product over the
// coefficients to the sub-layer's input, or from the merged streams to the next step's input.
//
// A tile is 28 tokens, two blocks of packed_gemm's rows. Workers take whole tiles, so results do not depend on how many
// there are. Floor: see streams.hpp.
#pragma once

#include "anabranch/core/parallel.hpp"
#include "anabranch/mixers/matrix_kernels.hpp"
#include "anabranch/mixers/stream_products_cpu.hpp"

namespace anabranch {

namespace detail {

inline constexpr int64_t kTileTokens = 28;
/// Whether streams are so large that they do not stay in cache until somebody reads them again: then they are written
/// past the caches, which need not read the lines first.
template <class T>
bool is_streaming(const StreamShape& shape) {
  return shape.tokens * shape.width() * static_cast<int64_t>(sizeof(T)) >= int64_t{4} << 20;
}

/// The projection without its streams' type: matrix kernels see sums alone.
template <class T>
StreamProjection<accumulate_t<T>> projection_of_sums(const StreamProjection<T>& p) {
  return {p.weight, p.scale, p.bias, p.segments, p.eps, p.centered, p.squash, p.map};
}

/// One worker's memory for the first half of a step.
template <class T>
class PreWorkspace {
 public:
  using Sum = accumulate_t<T>;
  PreWorkspace(const StreamProducts<T>* products, const StreamProjection<T>& projection)
      : matrix_(matrix_scratch<Sum>(projection.map.mixer, projection.num_logits())),
        product_(products ? products->workspace_bytes() : 0) {}
  Sum* matrix() const { return matrix_.data(); }
  std::byte* product() const { return product_.data(); }

 private:
  Temporary<Sum> matrix_;
  Temporary<std::byte> product_;
};

/// stream_pre of some tokens.
template <class T>
void pre_tile(const StreamShape& tile, const StreamProjection<T>& projection, const StreamProducts<T>* products,
              const T* x, const accumulate_t<T>* lag, T* u, accumulate_t<T>* coefficients, accumulate_t<T>* statistics,
              const PreWorkspace<T>& workspace) {
  using Sum = accumulate_t<T>;
  if (products) products->statistics(tile.tokens, x, statistics, workspace.product());
  matrix_kernels<Sum>().coefficients(projection_of_sums(projection), tile.tokens, statistics, coefficients,
                                     workspace.matrix());
  stream_kernels<T>().pre(tile, x, lag ? lag : coefficients, u);
}

/// Calls f(first token, tile, worker) for all tiles.
template <class F>
void for_each_tile(const StreamShape& shape, int num_workers, const F& f) {
  const int64_t tiles = (shape.tokens + kTileTokens - 1) / kTileTokens;
  parallel_tiles(tiles, num_workers, [&](int64_t index, int worker) {
    const int64_t first = index * kTileTokens;
    f(first, StreamShape{std::min(kTileTokens, shape.tokens - first), shape.streams, shape.channels}, worker);
  });
}

inline int stream_workers(const StreamShape& shape) {
  return workers_for(shape.tokens * shape.width(), kTileTokens * 1024);
}

/// `count` of something that is not copied.
template <class W, class... Args>
std::vector<std::unique_ptr<W>> make_workspaces(int count, const Args&... args) {
  std::vector<std::unique_ptr<W>> all;
  for (int i = 0; i < count; ++i) all.push_back(std::make_unique<W>(args...));
  return all;
}

template <class T>
std::unique_ptr<StreamProducts<T>> make_products(const StreamShape& shape, const StreamProjection<T>& projection) {
  if (!projection.weight || shape.tokens == 0) return nullptr;
  return std::make_unique<StreamProducts<T>>(shape, projection, kTileTokens);
}

}  // namespace detail

/// project() of `count` matrices: logits [count, num_logits] -> matrices [count, n, n].
template <class Sum>
void mix_matrix_cpu(const Mixer& mixer, int64_t count, const Sum* logits, Sum* matrices) {
  const int64_t size = mixer.num_streams * mixer.num_streams, num_logits = mixer.num_logits();
  parallel_for((count + 255) / 256, 4, [&](int64_t begin, int64_t end) {
    const Temporary<Sum> scratch(matrix_scratch<Sum>(mixer, num_logits));
    const int64_t first = 256 * begin, last = std::min(256 * end, count);
    matrix_kernels<Sum>().mix(mixer, last - first, logits + first * num_logits, matrices + first * size,
                              scratch.data());
  });
}

template <class Sum>
void mix_matrix_backward_cpu(const Mixer& mixer, int64_t count, const Sum* dmatrices, const Sum* logits,
                             const Sum* matrices, Sum* dlogits) {
  const int64_t size = mixer.num_streams * mixer.num_streams, num_logits = mixer.num_logits();
  parallel_for((count + 255) / 256, 4, [&](int64_t begin, int64_t end) {
    const Temporary<Sum> scratch(matrix_scratch<Sum>(mixer, num_logits));
    const int64_t first = 256 * begin, last = std::min(256 * end, count);
    matrix_kernels<Sum>().mix_backward(mixer, last - first, dmatrices + first * size, logits + first * num_logits,
                                       matrices + first * size, dlogits + first * num_logits, scratch.data());
  });
}

/// stream_pre_reference, up to rounding.
template <class T>
void stream_pre_cpu(const StreamShape& shape, const StreamProjection<T>& projection, const T* x,
                    const accumulate_t<T>* lag, T* u, accumulate_t<T>* coefficients, accumulate_t<T>* statistics) {
  const int workers = detail::stream_workers(shape);
  const auto products = detail::make_products(shape, projection);
  const auto workspaces = detail::make_workspaces<detail::PreWorkspace<T>>(workers, products.get(), projection);
  const int64_t size = projection.map.num_coefficients(), kept = projection.num_statistics();
  detail::for_each_tile(shape, workers, [&](int64_t first, const StreamShape& tile, int worker) {
    detail::pre_tile(tile, projection, products.get(), x + first * shape.width(), lag ? lag + first * size : nullptr,
                     u + first * shape.channels, coefficients + first * size, statistics + first * kept,
                     *workspaces[worker]);
  });
}

/// stream_post_reference, up to rounding.
template <class T>
void stream_post_cpu(const StreamShape& shape, const T* x, const T* y, const accumulate_t<T>* coefficients, T* out) {
  const int64_t size = shape.streams * (shape.streams + 2), width = shape.width();
  const bool streaming = detail::is_streaming<T>(shape);
  const auto kernels = stream_kernels<T>();
  detail::for_each_tile(shape, detail::stream_workers(shape), [&](int64_t first, const StreamShape& tile, int) {
    kernels.post(tile, x + first * width, y + first * shape.channels, coefficients + first * size, out + first * width,
                 streaming, nullptr);
  });
}

/// stream_post of one step and stream_pre of the next. `lagged`: u reads by the coefficients of the first.
template <class T>
void stream_post_pre_cpu(const StreamShape& shape, const T* x, const T* y, const accumulate_t<T>* coefficients,
                         const StreamProjection<T>& projection, bool lagged, T* out, T* u,
                         accumulate_t<T>* next_coefficients, accumulate_t<T>* next_statistics) {
  const int workers = detail::stream_workers(shape);
  const auto products = detail::make_products(shape, projection);
  const auto workspaces = detail::make_workspaces<detail::PreWorkspace<T>>(workers, products.get(), projection);
  const auto kernels = stream_kernels<T>();
  const int64_t size = projection.map.num_coefficients(), kept = projection.num_statistics(), width = shape.width();
  // What is written past the caches is written for the second half into a tile that stays in them, too.
  const bool streaming = detail::is_streaming<T>(shape);
  const int64_t tile_size = streaming ? detail::kTileTokens * width : 0;
  const Temporary<T> tiles(workers * tile_size);
  detail::for_each_tile(shape, workers, [&](int64_t first, const StreamShape& tile, int worker) {
    const accumulate_t<T>* own = coefficients + first * size;
    T* const cached = streaming ? tiles.data() + worker * tile_size : nullptr;
    kernels.post(tile, x + first * width, y + first * shape.channels, own, out + first * width, streaming, cached);
    detail::pre_tile(tile, projection, products.get(), cached ? cached : out + first * width, lagged ? own : nullptr,
                     u + first * shape.channels, next_coefficients + first * size, next_statistics + first * kept,
                     *workspaces[worker]);
  });
}

}  // namespace anabranch
