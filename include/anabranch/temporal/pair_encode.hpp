// A pair's features from the join of its two slot sets: what it computes, and its plain-loop definition.
//
//   out_p = sum over the joined keys k of pair p of act(weight z_k + code_table[code_k])
//
// with the keys, sums z and codes of pair_join.hpp, and act the identity or max(., 0). Source: NAT's joint feature
// (arXiv 2209.01084), one embedding row for each of its 64 distance codes. With no activation the sum moves inside:
// weight (sum of z over all slots) + sum over codes of (how many keys have it) code_table[code].
//
// Layout: as pair_join.hpp; weight [channels, features], code_table [64, channels], out [pairs, channels], all of type
// T; sums are kept in accumulate_t<T>. FLOPs a pair: keys * channels * (2 features + 2), or 2 channels * (features +
// distinct codes) with no activation. Bytes: the two rows of slots, 2 slots * (8 + features * sizeof(T)), and a row of
// out; the join is never written.
#pragma once

#include "anabranch/temporal/pair_join.hpp"

namespace anabranch {

enum class PairActivation { none, relu };

template <class T>
struct PairEncode {
  SlotPairs<T> sets;
  const T *weight, *code_table;
  int64_t channels;
  PairActivation activation;
};

namespace detail {

/// weight z + code_table[code] for one channel.
template <class T>
accumulate_t<T> encoded_key(const PairEncode<T>& problem, int64_t channel, const accumulate_t<T>* z, int32_t code) {
  using Sum = accumulate_t<T>;
  Sum value = static_cast<Sum>(problem.code_table[code * problem.channels + channel]);
  for (int64_t f = 0; f < problem.sets.features; ++f) {
    value += static_cast<Sum>(problem.weight[channel * problem.sets.features + f]) * z[f];
  }
  return value;
}

}  // namespace detail

template <class T>
void pair_encode_reference(const PairEncode<T>& problem, T* out) {
  for (int64_t p = 0; p < problem.sets.pairs; ++p) {
    const JoinedPair<T> joined = joined_pair_reference(problem.sets, p);
    for (int64_t h = 0; h < problem.channels; ++h) {
      accumulate_t<T> sum = 0;
      for (size_t k = 0; k < joined.keys.size(); ++k) {
        const auto value =
            detail::encoded_key(problem, h, joined.z.data() + k * problem.sets.features, joined.codes[k]);
        sum += problem.activation == PairActivation::none || !(value < 0) ? value : 0;
      }
      out[p * problem.channels + h] = T(sum);
    }
  }
}

/// dz [rows, slots, features], dweight and dcode_table for dout [pairs, channels]; each may be null.
template <class T>
void pair_encode_backward_reference(const PairEncode<T>& problem, const T* dout, T* dz, T* dweight, T* dcode_table) {
  using Sum = accumulate_t<T>;
  const SlotPairs<T>& sets = problem.sets;
  const int64_t features = sets.features, channels = problem.channels;
  std::vector<Sum> z_sums(sets.rows * sets.slots * features), weight_sums(channels * features);
  std::vector<Sum> table_sums(num_pair_codes * channels);
  for (int64_t p = 0; p < sets.pairs; ++p) {
    const JoinedPair<T> joined = joined_pair_reference(sets, p);
    std::vector<Sum> dkeys(joined.z.size());
    for (size_t k = 0; k < joined.keys.size(); ++k) {
      const Sum* z = joined.z.data() + k * features;
      for (int64_t h = 0; h < channels; ++h) {
        if (problem.activation == PairActivation::relu && detail::encoded_key(problem, h, z, joined.codes[k]) <= 0) {
          continue;
        }
        const Sum d = static_cast<Sum>(dout[p * channels + h]);
        table_sums[joined.codes[k] * channels + h] += d;
        for (int64_t f = 0; f < features; ++f) {
          weight_sums[h * features + f] += d * z[f];
          dkeys[k * features + f] += d * static_cast<Sum>(problem.weight[h * features + f]);
        }
      }
    }
    for (int64_t i = 0; i < 2 * sets.slots; ++i) {
      if (joined.positions[i] < 0) continue;
      const int64_t slot = sets.row(p, i >= sets.slots) * sets.slots + i % sets.slots;
      for (int64_t f = 0; f < features; ++f) z_sums[slot * features + f] += dkeys[joined.positions[i] * features + f];
    }
  }
  const auto rounded = [](const std::vector<Sum>& sums, T* to) {
    for (size_t i = 0; i < sums.size() && to; ++i) to[i] = T(sums[i]);
  };
  rounded(z_sums, dz), rounded(weight_sums, dweight), rounded(table_sums, dcode_table);
}

}  // namespace anabranch
