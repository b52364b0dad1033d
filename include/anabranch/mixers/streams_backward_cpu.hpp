// The stream step on the CPU, backward.
//
// Tokens are taken in groups of 128. For a group first the dot products with du and the coefficients' gradient, then
// the streams' gradient, by blocks of 64 channels of all streams: a block of the weight and of its gradient stay in
// cache for the whole group. The weight's gradient is summed in up to 8 parts of neighbouring groups, each by one
// worker, and the parts are added in order: the result does not depend on the number of workers.
//
// FLOPs: 4 K n C a token for K logits besides mixing. Bytes: those of streams.hpp, the streams read a second time from
// the last-level cache, and weight and its gradient once per group. Floor: the larger of both over what the machine
// can.
#pragma once

#include "anabranch/mixers/blocked_weight_cpu.hpp"
#include "anabranch/mixers/streams_cpu.hpp"

namespace anabranch {

namespace detail {

inline constexpr int64_t kGroupTokens = 128;
inline constexpr int64_t kGradientParts = 8;

/// What one worker keeps for a group of tokens.
template <class T>
struct PreBackwardWorkspace {
  using Sum = accumulate_t<T>;
  PreBackwardWorkspace(const StreamProjection<T>& p, int64_t padded)
      : dcoefficients(kGroupTokens * p.map.num_coefficients()),
        dproducts(kGroupTokens * p.num_logits()),
        padded_dproducts(kGroupTokens * p.segments * padded),
        slopes(kGroupTokens * p.segments),
        means(kGroupTokens * p.segments),
        scratch(2 * p.map.mixer.num_streams * kStreamScratch),
        matrix(matrix_scratch<Sum>(p.map.mixer, p.num_logits())) {
    std::fill(padded_dproducts.data(), padded_dproducts.data() + kGroupTokens * p.segments * padded, Sum(0));
    std::fill(scratch.data(), scratch.data() + 2 * p.map.mixer.num_streams * kStreamScratch, Sum(0));
  }
  Temporary<Sum> dcoefficients, dproducts, padded_dproducts, slopes, means, scratch, matrix;
};

/// The backward of stream_pre for a whole call; group() may be called for different groups at once.
template <class T>
class PreBackward {
 public:
  using Sum = accumulate_t<T>;

  PreBackward(const StreamShape& shape, const StreamProjection<T>& projection, const StreamPreGradients<T>& gradients)
      : shape_(shape),
        projection_(projection),
        gradients_(gradients),
        blocked_(shape, projection),
        groups_((shape.tokens + kGroupTokens - 1) / kGroupTokens),
        parts_(std::min(groups_, kGradientParts)),
        weight_(blocked_.size()),
        dweight_(gradients.weight ? parts_ * blocked_.size() : 0),
        dlogits_(parts_ * 2 * projection.num_logits()) {
    if (projection.weight) blocked_.pack(projection.weight, weight_.data());
    std::fill(dlogits_.data(), dlogits_.data() + parts_ * 2 * projection.num_logits(), Sum(0));
  }

  /// Calls f(first token, tokens, part, workspace) for all groups; those of a part one after another.
  template <class F>
  void for_each_group(const F& f) const {
    const int workers = static_cast<int>(std::min<int64_t>(stream_workers(shape_), parts_));
    const auto workspaces = make_workspaces<PreBackwardWorkspace<T>>(workers, projection_, blocked_.padded());
    parallel_tiles(parts_, workers, [&](int64_t part, int worker) {
      if (gradients_.weight) std::fill(dweight_part(part), dweight_part(part) + blocked_.size(), Sum(0));
      for (int64_t g = groups_ * part / parts_; g < groups_ * (part + 1) / parts_; ++g) {
        const int64_t first = g * kGroupTokens;
        f(first, std::min(kGroupTokens, shape_.tokens - first), part, *workspaces[worker]);
      }
    });
  }

  /// Pointers are to the group's first token; dx and dlag may be null.
  void group(int64_t tokens, int64_t part, const StreamPreUpstream<T>& upstream, const T* x, const Sum* lag,
             const Sum* coefficients, const Sum* statistics, T* dx, bool streaming, Sum* dlag,
             const PreBackwardWorkspace<T>& workspace) const {
    const StreamShape shape{tokens, shape_.streams, shape_.channels};
    const int64_t size = projection_.map.num_coefficients();
    Sum* const dcoefficients = workspace.dcoefficients.data();
    gather_upstream(shape, upstream, x, lag != nullptr, dcoefficients, dlag);
    Sum* const dscale = dlogits_.data() + part * 2 * projection_.num_logits();
    matrix_kernels<Sum>().coefficients_backward(projection_of_sums(projection_), tokens, statistics, coefficients,
                                                dcoefficients, workspace.dproducts.data(), dscale,
                                                dscale + projection_.num_logits(), workspace.matrix.data());
    if (projection_.weight) scale_products(tokens, statistics, workspace);
    if (!dx && !gradients_.weight) return;
    const int64_t padded = blocked_.padded(), segments = projection_.segments, channels = shape_.channels;
    for (int64_t b = 0; b < blocked_.blocks(); ++b) {
      for (int64_t t = 0; t < tokens; t += kTokenBlock) {
        const auto at = [t](auto* pointer, int64_t step) { return pointer ? pointer + t * step : nullptr; };
        stream_kernels<T>().pre_backward(
            PreBackwardBlock<T>{.shape = {std::min(kTokenBlock, tokens - t), shape_.streams, channels},
                                .begin = b * kChannelBlock,
                                .count = std::min(kChannelBlock, channels - b * kChannelBlock),
                                .ahead_tokens = t + kTokenBlock < tokens ? kTokenBlock : -t,
                                .ahead_channels = t + kTokenBlock < tokens ? 0 : kChannelBlock,
                                .x = x + t * shape_.width(),
                                .du = at(upstream.du, channels),
                                .dnext = at(upstream.dnext, shape_.width()),
                                .dx_given = at(upstream.dx, shape_.width()),
                                .reads = (lag ? lag : coefficients) + t * size,
                                .coefficients = coefficients + t * size,
                                .logits = padded,
                                .per_segment = segments > 1,
                                .dproducts = workspace.padded_dproducts.data() + t * segments * padded,
                                .slopes = workspace.slopes.data() + t * segments,
                                .means = workspace.means.data() + t * segments,
                                .weight = weight_.data() + b * blocked_.block_size(),
                                .dweight = gradients_.weight ? dweight_part(part) + b * blocked_.block_size() : nullptr,
                                .dx = at(dx, shape_.width()),
                                .streaming = streaming,
                                .scratch = workspace.scratch.data()});
      }
    }
  }

  /// After all groups: the sums of the parts.
  void finish() const {
    const int64_t logits = projection_.num_logits();
    if (gradients_.weight) blocked_.unpack(dweight_.data(), parts_, gradients_.weight);
    for (int64_t k = 0; k < logits; ++k) {
      Sum scale = 0, bias = 0;
      for (int64_t p = 0; p < parts_; ++p) {
        scale += dlogits_.data()[p * 2 * logits + k];
        bias += dlogits_.data()[(p * 2 + 1) * logits + k];
      }
      if (gradients_.scale) gradients_.scale[k] = scale;
      if (gradients_.bias) gradients_.bias[k] = bias;
    }
  }

 private:
  Sum* dweight_part(int64_t part) const { return dweight_.data() + part * blocked_.size(); }

  /// The gradients of all coefficients: what was given, and p's of the input it made.
  void gather_upstream(const StreamShape& shape, const StreamPreUpstream<T>& upstream, const T* x, bool lagged,
                       Sum* dcoefficients, Sum* dlag) const {
    const int64_t n = shape.streams, size = n * (n + 2);
    std::fill(dcoefficients, dcoefficients + shape.tokens * size, Sum(0));
    if (dlag) std::fill(dlag, dlag + shape.tokens * size, Sum(0));
    if (upstream.du && (!lagged || dlag)) {
      stream_kernels<T>().read_dots(shape, upstream.du, x, lagged ? dlag : dcoefficients);
    }
    for (int64_t i = 0; upstream.dcoefficients && i < shape.tokens * size; ++i) {
      dcoefficients[i] += upstream.dcoefficients[i];
    }
  }

  /// dproducts times r, padded; and what the norm takes away along x.
  void scale_products(int64_t tokens, const Sum* statistics, const PreBackwardWorkspace<T>& workspace) const {
    const int64_t segments = projection_.segments, products = projection_.num_products();
    const int64_t logits = projection_.num_logits(), part = shape_.width() / segments;
    const Sum* dm = workspace.dproducts.data();
    for (int64_t t = 0; t < tokens; ++t, dm += logits, statistics += projection_.num_statistics()) {
      for (int64_t s = 0; s < segments; ++s) {
        const Sum r = statistics[logits + 2 * s];
        Sum* const to = workspace.padded_dproducts.data() + (t * segments + s) * blocked_.padded();
        Sum along = 0;
        for (int64_t k = 0; k < products; ++k) {
          along += dm[s * products + k] * statistics[s * products + k];
          to[k] = r * dm[s * products + k];
        }
        workspace.slopes.data()[t * segments + s] = r * r / static_cast<Sum>(part) * along;
        workspace.means.data()[t * segments + s] = statistics[logits + 2 * s + 1];
      }
    }
  }

  const StreamShape shape_;
  const StreamProjection<T>& projection_;
  const StreamPreGradients<T> gradients_;
  const BlockedWeight<T> blocked_;
  const int64_t groups_, parts_;
  const Temporary<Sum> weight_, dweight_, dlogits_;
};

}  // namespace detail

/// stream_pre_backward_reference, up to rounding.
template <class T>
void stream_pre_backward_cpu(const StreamShape& shape, const StreamProjection<T>& projection,
                             const StreamPreUpstream<T>& upstream, const T* x, const accumulate_t<T>* lag,
                             const accumulate_t<T>* coefficients, const accumulate_t<T>* statistics,
                             const StreamPreGradients<T>& gradients) {
  const detail::PreBackward<T> backward(shape, projection, gradients);
  const int64_t size = projection.map.num_coefficients(), width = shape.width();
  const bool streaming = detail::is_streaming<T>(shape);
  backward.for_each_group([&](int64_t first, int64_t tokens, int64_t part, const auto& workspace) {
    const auto at = [first](auto* pointer, int64_t step) { return pointer ? pointer + first * step : nullptr; };
    const StreamPreUpstream<T> own{at(upstream.du, shape.channels), at(upstream.dcoefficients, size),
                                   at(upstream.dnext, width), at(upstream.dx, width)};
    backward.group(tokens, part, own, x + first * width, at(lag, size), coefficients + first * size,
                   at(statistics, projection.num_statistics()), at(gradients.x, width), streaming,
                   at(gradients.lag, size), workspace);
  });
  backward.finish();
}

/// stream_post_backward_reference, up to rounding.
template <class T>
void stream_post_backward_cpu(const StreamShape& shape, const T* dout, const T* x, const T* y,
                              const accumulate_t<T>* coefficients, const StreamPostGradients<T>& gradients) {
  const int64_t size = shape.streams * (shape.streams + 2), width = shape.width();
  const auto kernels = stream_kernels<T>();
  detail::for_each_tile(shape, detail::stream_workers(shape), [&](int64_t first, const StreamShape& tile, int) {
    const auto at = [first](auto* pointer, int64_t step) { return pointer ? pointer + first * step : nullptr; };
    kernels.post_backward(tile, dout + first * width, x + first * width, y + first * shape.channels,
                          coefficients + first * size,
                          {at(gradients.x, width), at(gradients.y, shape.channels), at(gradients.dcoefficients, size)});
  });
}

/// The gradient of stream_post_pre_cpu. The streams between are computed again from x and y. pre.x is the gradient of
/// those; it is needed. post.x is not written: the step before takes pre.x as its `dnext`. Where `lagged`, the part of
/// the lag is in post.dcoefficients, which is needed too.
template <class T>
void stream_post_pre_backward_cpu(const StreamShape& shape, const T* x, const T* y, const accumulate_t<T>* coefficients,
                                  const StreamProjection<T>& projection, bool lagged,
                                  const StreamPreUpstream<T>& upstream, const accumulate_t<T>* next_coefficients,
                                  const accumulate_t<T>* next_statistics, const StreamPreGradients<T>& pre,
                                  const StreamPostGradients<T>& post) {
  using Sum = accumulate_t<T>;
  const detail::PreBackward<T> backward(shape, projection, pre);
  const int64_t size = projection.map.num_coefficients(), width = shape.width(), channels = shape.channels;
  const auto kernels = stream_kernels<T>();
  backward.for_each_group([&](int64_t first, int64_t tokens, int64_t part, const auto& workspace) {
    const auto at = [first](auto* pointer, int64_t step) { return pointer ? pointer + first * step : nullptr; };
    const StreamShape group{tokens, shape.streams, channels};
    const Temporary<T> between(tokens * width);
    const Temporary<Sum> lag(lagged ? tokens * size : 0);
    const Sum* own = coefficients + first * size;
    kernels.post(group, x + first * width, y + first * channels, own, between.data(), false, nullptr);
    backward.group(tokens, part,
                   {at(upstream.du, channels), at(upstream.dcoefficients, size), at(upstream.dnext, width),
                    at(upstream.dx, width)},
                   between.data(), lagged ? own : nullptr, next_coefficients + first * size,
                   at(next_statistics, projection.num_statistics()), pre.x + first * width, false,
                   lagged ? lag.data() : nullptr, workspace);
    Sum* const dcoefficients = at(post.dcoefficients, size);
    kernels.post_backward(group, pre.x + first * width, x + first * width, y + first * channels, own,
                          {nullptr, at(post.y, channels), dcoefficients});
    for (int64_t i = 0; lagged && i < tokens * size; ++i) dcoefficients[i] += lag.data()[i];
  });
  backward.finish();
}

}  // namespace anabranch
