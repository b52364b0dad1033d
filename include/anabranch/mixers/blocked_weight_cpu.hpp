// The weight of a stream projection, and its gradient, in blocks of channels: what the backward keeps in cache while it
// goes through the tokens of a group.
#pragma once

#include <algorithm>

#include "anabranch/mixers/stream_kernels.hpp"

namespace anabranch::detail {

/// The weight in the order in which pre_backward reads it: [channel blocks][streams][padded logits][kChannelBlock].
template <class T>
class BlockedWeight {
 public:
  using Sum = accumulate_t<T>;
  BlockedWeight(const StreamShape& shape, const StreamProjection<T>& projection)
      : shape_(shape),
        logits_(projection.weight ? projection.num_products() : 0),
        part_(shape.width() / projection.segments),
        per_segment_(projection.segments > 1) {}

  int64_t padded() const { return padded_logits(logits_); }
  int64_t block_size() const { return shape_.streams * padded() * kChannelBlock; }
  int64_t blocks() const { return (shape_.channels + kChannelBlock - 1) / kChannelBlock; }
  int64_t size() const { return blocks() * block_size(); }

  void pack(const Sum* weight, Sum* to) const {
    std::fill(to, to + size(), Sum(0));
    for_each_piece([&](int64_t at, int64_t in_weight, int64_t count) {
      std::copy(weight + in_weight, weight + in_weight + count, to + at);
    });
  }
  /// weight = the sum of `parts` blocked ones, `stride` apart.
  void unpack(const Sum* from, int64_t parts, Sum* weight) const {
    std::fill(weight, weight + logits_ * part_, Sum(0));
    for (int64_t p = 0; p < parts; ++p) {
      for_each_piece([&](int64_t at, int64_t in_weight, int64_t count) {
        for (int64_t c = 0; c < count; ++c) weight[in_weight + c] += from[p * size() + at + c];
      });
    }
  }

 private:
  template <class F>
  void for_each_piece(const F& f) const {
    for (int64_t b = 0; b < blocks(); ++b) {
      const int64_t begin = b * kChannelBlock, count = std::min(kChannelBlock, shape_.channels - begin);
      for (int64_t j = 0; j < shape_.streams; ++j) {
        for (int64_t k = 0; k < logits_; ++k) {
          f(b * block_size() + (j * padded() + k) * kChannelBlock,
            k * part_ + (per_segment_ ? 0 : j * shape_.channels) + begin, count);
        }
      }
    }
  }

  StreamShape shape_;
  int64_t logits_, part_;
  bool per_segment_;
};

}  // namespace anabranch::detail
