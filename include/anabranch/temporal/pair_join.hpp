// Pairs of rows of slots and the join of the two: what it computes, and its plain-loop definition.
//
// A row holds `slots` keys, negative where a slot is empty, and for each a vector z of `features` numbers. Every slot
// has a code of three bits, that of its hop. A pair is two rows, left and right. Its distinct keys, in the order of
// their first slots (left's, then right's), each get
//   code = the codes of its slots on the left, or-ed, + 8 * the same on the right    (in [1, 63])
//   z    = the sum of z over its slots, left's in slot order, then right's, in accumulate_t<T>.
// A key that sits in one hop of a row at most once has as its code the sum of what its slots bring: NAT's distance code
// (Luo and Li, arXiv 2209.01084). A row number out of range stands for a row without keys.
//
// Layout: keys int64 [rows, slots], z [rows, slots, features], slot_codes int32 [slots], left and right int64 [pairs];
// joined keys int64, codes int32 and z [pairs, 2 slots (, features)], counts int32 [pairs]. What lies past a pair's
// count is -1, 0 and 0.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "anabranch/core/scalar.hpp"

namespace anabranch {

inline constexpr int64_t max_pair_slots = 1024;  // slots are numbered in 16 bits, and a GPU keeps a pair on chip
inline constexpr int num_pair_codes = 64;

template <class T>
struct SlotPairs {
  const int64_t* keys;
  const T* z;
  const int32_t* slot_codes;
  const int64_t *left, *right;
  int64_t rows, slots, features, pairs;

  /// The row of one side (0 left, 1 right) of a pair, -1 if there is none of that number.
  ANABRANCH_HOST_DEVICE int64_t row(int64_t pair, int side) const {
    const int64_t number = side ? right[pair] : left[pair];
    return number >= 0 && number < rows ? number : -1;
  }
  ANABRANCH_HOST_DEVICE int32_t code(int64_t slot, int side) const {
    return static_cast<int32_t>(slot_codes[slot] & 7) << 3 * side;
  }
};

/// One pair's distinct keys. positions [2 slots] says where each slot's key is among them, -1 for an empty slot.
template <class T>
struct JoinedPair {
  std::vector<int64_t> keys;
  std::vector<int32_t> codes, positions;
  std::vector<accumulate_t<T>> z;
};

template <class T>
JoinedPair<T> joined_pair_reference(const SlotPairs<T>& problem, int64_t pair) {
  JoinedPair<T> out;
  out.positions.assign(2 * problem.slots, -1);
  for (int side = 0; side < 2; ++side) {
    const int64_t row = problem.row(pair, side);
    for (int64_t s = 0; s < problem.slots && row >= 0; ++s) {
      const int64_t key = problem.keys[row * problem.slots + s];
      if (key < 0) continue;
      size_t j = 0;
      while (j < out.keys.size() && out.keys[j] != key) ++j;
      if (j == out.keys.size()) {
        out.keys.push_back(key);
        out.codes.push_back(0);
        out.z.resize(out.z.size() + problem.features);
      }
      out.codes[j] |= problem.code(s, side);
      out.positions[side * problem.slots + s] = static_cast<int32_t>(j);
      const T* z = problem.z + (row * problem.slots + s) * problem.features;
      for (int64_t f = 0; f < problem.features; ++f) {
        out.z[j * problem.features + f] += static_cast<accumulate_t<T>>(z[f]);
      }
    }
  }
  return out;
}

template <class T>
void pair_join_reference(const SlotPairs<T>& problem, int64_t* keys, int32_t* codes, T* z, int32_t* counts) {
  const int64_t width = 2 * problem.slots;
  for (int64_t p = 0; p < problem.pairs; ++p) {
    const JoinedPair<T> joined = joined_pair_reference(problem, p);
    counts[p] = static_cast<int32_t>(joined.keys.size());
    for (int64_t j = 0; j < width; ++j) {
      const bool used = j < counts[p];
      keys[p * width + j] = used ? joined.keys[j] : -1;
      codes[p * width + j] = used ? joined.codes[j] : 0;
      for (int64_t f = 0; f < problem.features; ++f) {
        z[(p * width + j) * problem.features + f] = used ? T(joined.z[j * problem.features + f]) : T(0.0f);
      }
    }
  }
}

/// dz [rows, slots, features] for dz_joined [pairs, 2 slots, features]: a slot gets what its key gets, from all pairs
/// of its row in order (left before right), summed in accumulate_t<T>. z itself is not read.
template <class T>
void pair_join_backward_reference(const SlotPairs<T>& problem, const T* dz_joined, T* dz) {
  using Sum = accumulate_t<T>;
  std::vector<Sum> sums(problem.rows * problem.slots * problem.features);
  std::vector<T> zeros(sums.size(), T(0.0f));
  SlotPairs<T> shape = problem;
  shape.z = zeros.data();
  for (int64_t p = 0; p < problem.pairs; ++p) {
    const JoinedPair<T> joined = joined_pair_reference(shape, p);
    for (int64_t i = 0; i < 2 * problem.slots; ++i) {
      if (joined.positions[i] < 0) continue;
      const int64_t slot = problem.row(p, i >= problem.slots) * problem.slots + i % problem.slots;
      for (int64_t f = 0; f < problem.features; ++f) {
        const int64_t from = (p * 2 * problem.slots + joined.positions[i]) * problem.features + f;
        sums[slot * problem.features + f] += static_cast<Sum>(dz_joined[from]);
      }
    }
  }
  for (size_t i = 0; i < sums.size(); ++i) dz[i] = T(sums[i]);
}

}  // namespace anabranch
