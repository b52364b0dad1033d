// The order of a batch of 64-bit keys. Stable: equal keys keep the order they came in.
//
// Up to 1024 keys one launch: each thread counts the keys that come before its own, n^2 comparisons. Beyond, the plan's
// sort (plan/sort.cuh), digit after digit of 8 bits: 8 key_words passes, whatever the keys are; positions move, keys
// are looked up. A pass reads a line of 32 bytes for each key and 4 n bytes of order, and writes 4 n; for n = 1M and
// one word 0.6 GB in all. One launch a pass up to 2048 keys, three beyond. Up to 2^30 keys.
#pragma once

#include "anabranch/index/node.cuh"
#include "anabranch/plan/sort.cuh"

namespace anabranch::detail {

/// 8 bits of one word of a key; `flip` turns the order of signed words into that of digits.
template <int key_words>
struct KeyDigit {
  const int64_t* keys;
  int word, shift;
  int32_t flip;
  __device__ int32_t operator()(int32_t position) const {
    const auto bits = static_cast<uint64_t>(keys[static_cast<int64_t>(position) * key_words + word]);
    return static_cast<int32_t>((bits >> shift) & 255) ^ flip;
  }
};

inline constexpr int64_t kCountedKeys = 1024;

template <int key_words>
__global__ void __launch_bounds__(kIndexThreads) index_rank_kernel(int64_t n, const int64_t* keys, int32_t* order) {
  using Key = DeviceKey<key_words>;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const Key key = Key::at(keys, i);
  int rank = 0;
  for (int64_t other = 0; other < n; ++other) {
    const Key that = Key::at(keys, other);
    rank += other < i ? !key.less(that) : that.less(key);
  }
  order[rank] = static_cast<int32_t>(i);
}

/// int32 elements of scratch.
template <int key_words>
int64_t sort_keys_scratch(int64_t n) {
  return n <= kCountedKeys ? n : SortScratch::size(n, n, 8 * key_words);
}

/// The positions of ascending keys, equal keys in the order they came in. It lies in the scratch.
template <int key_words>
const int32_t* sort_keys_cuda(int64_t n, const int64_t* keys, int32_t* scratch, cudaStream_t stream) {
  if (n <= kCountedKeys) {
    launch(index_rank_kernel<key_words>, index_grid(n, 1), kIndexThreads, 0, stream, n, keys, scratch);
    return scratch;
  }
  SortScratch sort(scratch, n, n);
  const int32_t* order = nullptr;
  for (int word = key_words; word-- > 0;) {
    for (int shift = 0; shift < 64; shift += 8) {
      const KeyDigit<key_words> digit{keys, word, shift, shift == 56 ? 128 : 0};
      order = sort_lower_digits_cuda(n, order, digit, kSortDigits, 1, sort, stream);
    }
  }
  return order;
}

}  // namespace anabranch::detail
