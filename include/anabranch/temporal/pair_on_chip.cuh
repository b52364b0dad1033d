// A pair's join in the shared memory of a block of 128 threads: what pair_join and pair_encode share on the GPU.
//
// The pair's keys come to shared memory, and a table there of at least four places a slot settles which slot of a key
// is its first: a place is taken by atomicCAS and then sinks to the lowest slot of its key by atomicMin, so what is
// found does not depend on who came when. Positions are counts of first slots before (ballots). The slots whose key
// came before are listed in order; a key's code and sum take its first slot, then its own of that list: one order of
// summation, and no float atomics. Shared memory: 40 bytes a slot and the table, 3.0 KB for 49 slots.
#pragma once

#include "anabranch/core/vector.cuh"
#include "anabranch/temporal/pair_join.hpp"

namespace anabranch::detail {

inline constexpr unsigned kPairThreads = 128;

inline int pair_table_places(int64_t slots) {
  return static_cast<int>(std::bit_ceil(static_cast<unsigned>(std::max<int64_t>(4 * slots, 4))));
}

inline size_t pair_shared_bytes(int64_t slots) {
  const int64_t width = 2 * slots;
  return shared_bytes<int64_t, int, int, int, int, int>(width, pair_table_places(slots), width, width, width,
                                                        2 * kPairThreads / 32);
}

/// A pair's join, in the shared memory of its block.
class PairOnChip {
 public:
  __device__ PairOnChip(SharedMemory& shared, int slots, int places)
      : slots_(slots),
        places_(places),
        keys_(shared.take<int64_t>(2 * slots)),
        table_(shared.take<int>(places)),
        positions_(shared.take<int>(2 * slots)),
        firsts_(shared.take<int>(2 * slots)),
        repeats_(shared.take<int>(2 * slots)),
        warps_(shared.take<int>(2 * kPairThreads / 32)) {}

  /// All threads of the block; what was read of the pair before must be through (__syncthreads).
  template <class T>
  __device__ void join(const SlotPairs<T>& problem, int64_t pair) {
    const int thread = static_cast<int>(threadIdx.x), width = 2 * slots_;
    for (int i = thread; i < places_; i += kPairThreads) table_[i] = -1;
    for (int i = thread; i < width; i += kPairThreads) {
      const int64_t row = problem.row(pair, i >= slots_);
      keys_[i] = row < 0 ? -1 : problem.keys[row * slots_ + i % slots_];
    }
    __syncthreads();
    for (int i = thread; i < width; i += kPairThreads) insert(i);
    __syncthreads();
    number_slots();
  }

  __device__ int count() const { return count_; }
  __device__ int position(int slot) const { return positions_[slot]; }
  __device__ int64_t key(int joined) const {
    const int first = firsts_[joined];
    return keys_[first];
  }

  template <class T>
  __device__ int code(const SlotPairs<T>& problem, int joined) const {
    int code = 0;
    for_slots(joined, [&](int slot) { code |= problem.code(slot % slots_, slot >= slots_); });
    return code;
  }

  /// One number of a key's z.
  template <class T>
  __device__ accumulate_t<T> z(const SlotPairs<T>& problem, int64_t pair, int joined, int64_t feature) const {
    accumulate_t<T> sum = 0;
    for_slots(joined, [&](int slot) {
      const int64_t row = problem.row(pair, slot >= slots_);
      sum += static_cast<accumulate_t<T>>(problem.z[(row * slots_ + slot % slots_) * problem.features + feature]);
    });
    return sum;
  }

 private:
  __device__ unsigned place_of(int64_t key) const {
    const uint64_t hash = static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u;
    return static_cast<unsigned>(hash >> 32) & static_cast<unsigned>(places_ - 1);
  }

  __device__ void insert(int slot) {
    const int64_t key = keys_[slot];
    if (key < 0) return;
    for (unsigned at = place_of(key);; at = (at + 1) & static_cast<unsigned>(places_ - 1)) {
      const int there = atomicCAS(&table_[at], -1, slot);
      if (there < 0) return;
      const int64_t its_key = keys_[there];
      if (its_key == key) {
        atomicMin(&table_[at], slot);
        return;
      }
    }
  }

  /// The first slot of a slot's key, -1 for an empty slot.
  __device__ int first_slot(int slot) const {
    const int64_t key = keys_[slot];
    if (key < 0) return -1;
    for (unsigned at = place_of(key);; at = (at + 1) & static_cast<unsigned>(places_ - 1)) {
      const int there = table_[at];
      const int64_t its_key = keys_[there];
      if (its_key == key) return there;
    }
  }

  /// Fills firsts, repeats and positions, 128 slots at a time.
  __device__ void number_slots() {
    constexpr int num_warps = kPairThreads / 32;
    const int thread = static_cast<int>(threadIdx.x), width = 2 * slots_, warp = thread / 32;
    const unsigned before = (1u << thread % 32) - 1;
    int firsts = 0, repeats = 0;
    for (int base = 0; base < width; base += kPairThreads) {
      const int slot = base + thread, first = slot < width ? first_slot(slot) : -1;
      const unsigned new_lanes = __ballot_sync(kAllLanes, first >= 0 && first == slot);
      const unsigned old_lanes = __ballot_sync(kAllLanes, first >= 0 && first != slot);
      if (thread % 32 == 0) {
        warps_[warp] = __popc(new_lanes);
        warps_[num_warps + warp] = __popc(old_lanes);
      }
      __syncthreads();
      int new_before = firsts, old_before = repeats;
      for (int w = 0; w < num_warps; ++w) {
        const int new_count = warps_[w], old_count = warps_[num_warps + w];
        new_before += w < warp ? new_count : 0, old_before += w < warp ? old_count : 0;
        firsts += new_count, repeats += old_count;
      }
      if (first >= 0 && first == slot) {
        positions_[slot] = new_before + __popc(new_lanes & before);
        firsts_[new_before + __popc(new_lanes & before)] = slot;
      } else if (first >= 0) {
        repeats_[old_before + __popc(old_lanes & before)] = slot;
      } else if (slot < width) {
        positions_[slot] = -1;
      }
      __syncthreads();
    }
    count_ = firsts, num_repeats_ = repeats;
    for (int i = thread; i < repeats; i += kPairThreads) {
      const int slot = repeats_[i];
      const int position = positions_[first_slot(slot)];
      positions_[slot] = position;
    }
    __syncthreads();
  }

  template <class F>
  __device__ void for_slots(int joined, F&& f) const {
    const int first = firsts_[joined];
    f(first);
    for (int i = 0; i < num_repeats_; ++i) {
      const int slot = repeats_[i];
      const int position = positions_[slot];
      if (position == joined) f(slot);
    }
  }

  int slots_, places_, count_ = 0, num_repeats_ = 0;
  SharedArray<int64_t> keys_;
  SharedArray<int> table_, positions_, firsts_, repeats_, warps_;
};

}  // namespace anabranch::detail
