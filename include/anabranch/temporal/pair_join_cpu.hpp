// The join of pairs of slot sets (pair_join.hpp defines it) on the CPU: a pair at a time by a small hash table.
//
// The table has at least eight places a slot, 1 KB for NAT's 49, and holds positions among the distinct keys, so it
// is cleared by some stores and stays in the first cache with them. A pair reads its two rows (2 slots * (8 + features
// * sizeof(T)) bytes) and writes as much and 8 slots + 4 bytes of codes and count: 5.1 KB for 49 slots and 4 floats.
// Floor: those bytes over the bandwidth of the cache or memory they lie in. About one probe for each slot.
//
// The backward walks the pairs in chunks: positions are found on several threads, then each worker adds to the rows it
// owns (NodeShare) in the order of the pairs, so sums have one order for every number of threads.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#include "anabranch/core/memory.hpp"
#include "anabranch/core/parallel.hpp"
#include "anabranch/temporal/events.hpp"
#include "anabranch/temporal/pair_join.hpp"

namespace anabranch {

namespace detail {

/// What joins one pair after another. Which keys are new and which places are taken is what no branch predictor can
/// know, so there is one branch for each probe and none for the rest.
class SlotJoin {
 public:
  explicit SlotJoin(int64_t slots)
      : slots_(slots),
        places_(static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(8 * slots, 8))))),
        shift_(64 - std::countr_zero(static_cast<uint64_t>(places_))),
        table_(places_),
        keys_(2 * slots + 2),
        codes_(2 * slots + 2),
        used_(2 * slots + 2) {
    keys_.data()[0] = -1;
  }

  /// Finds the pair's distinct keys; positions [2 slots] receives the place of each slot's key among them, or -1.
  template <class T>
  void join(const SlotPairs<T>& problem, int64_t pair, int16_t* positions) {
    if (pair + 1 < problem.pairs) prefetch(problem, pair + 1);
    std::memset(table_.data(), 0, places_ * sizeof(uint16_t));
    std::fill(positions, positions + 2 * slots_, int16_t{-1});
    count_ = 0;
    int64_t used = 0;
    int16_t* list = used_.data();
    for (int side = 0; side < 2; ++side, positions += slots_) {
      ends_[side] = used;
      const int64_t row = problem.row(pair, side);
      if (row < 0) continue;
      const int64_t* keys = problem.keys + row * slots_;
      const int64_t first = used;
      for (int64_t s = 0; s < slots_; ++s) {
        list[used] = static_cast<int16_t>(s);
        used += keys[s] >= 0;
      }
      for (int64_t e = first; e < used; ++e) positions[list[e]] = place(keys[list[e]], problem.code(list[e], side));
    }
    ends_[2] = used;
  }

  int64_t count() const { return count_; }
  const int64_t* keys() const { return keys_.data() + 1; }
  const int32_t* codes() const { return codes_.data() + 1; }

  /// f(slot) for the slots of one side that hold a key, in order.
  template <class F>
  void for_used(int side, F&& f) const {
    const int16_t* list = used_.data();
    for (int64_t e = ends_[side]; e < ends_[side + 1]; ++e) f(int64_t{list[e]});
  }

 private:
  /// Numbers in the table are one more than positions; 0 is an empty place.
  [[gnu::always_inline]] int16_t place(int64_t key, int32_t code) {
    uint16_t* table = table_.data();
    int64_t* keys = keys_.data();
    int32_t* codes = codes_.data();
    uint64_t at = static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u >> shift_;
    int64_t found = table[at];
    while ((found != 0) & (keys[found] != key)) {
      at = (at + 1) & (places_ - 1);
      found = table[at];
    }
    const int64_t number = found ? found : count_ + 1;
    table[at] = static_cast<uint16_t>(number);
    keys[number] = key;
    codes[number] = (found ? codes[number] : 0) | code;
    count_ += !found;
    return static_cast<int16_t>(number - 1);
  }

  template <class T>
  static void prefetch(const SlotPairs<T>& problem, int64_t pair) {
    constexpr int64_t line = 64;
    for (int side = 0; side < 2; ++side) {
      const int64_t row = problem.row(pair, side);
      if (row < 0) continue;
      const char* keys = reinterpret_cast<const char*>(problem.keys + row * problem.slots);
      const int64_t bytes = problem.slots * static_cast<int64_t>(sizeof(int64_t));
      for (int64_t at = 0; at < bytes; at += line) __builtin_prefetch(keys + at);
      const int64_t numbers = problem.slots * problem.features;
      const char* z = reinterpret_cast<const char*>(problem.z + row * numbers);
      const int64_t z_bytes = std::min<int64_t>(numbers * static_cast<int64_t>(sizeof(T)), 16 * line);
      for (int64_t at = 0; at < z_bytes; at += line) __builtin_prefetch(z + at);
    }
  }

  int64_t slots_, places_;
  int shift_;
  int64_t count_ = 0, ends_[3] = {};
  Temporary<uint16_t> table_;
  Temporary<int64_t> keys_;
  Temporary<int32_t> codes_;
  Temporary<int16_t> used_;
};

/// f(features) with the number as a constant where it is NAT's.
template <class F>
void with_features(int64_t features, F&& f) {
  features == 4 ? f(std::integral_constant<int64_t, 4>{}) : f(features);
}

/// z [count, features]: the sums over the slots of each joined key.
template <class T>
void sum_joined(const SlotPairs<T>& problem, int64_t pair, const SlotJoin& join, const int16_t* positions,
                accumulate_t<T>* z) {
  using Sum = accumulate_t<T>;
  std::fill(z, z + join.count() * problem.features, Sum(0));
  with_features(problem.features, [&](auto features) {
    for (int side = 0; side < 2; ++side, positions += problem.slots) {
      const T* row = problem.z + problem.row(pair, side) * problem.slots * features;
      join.for_used(side, [&](int64_t slot) {
        Sum* to = z + positions[slot] * features;
        for (int64_t f = 0; f < features; ++f) to[f] += static_cast<Sum>(row[slot * features + f]);
      });
    }
  });
}

inline constexpr int64_t pair_chunk = 2048;  // pairs whose positions and gradients wait to be added to rows

/// Sums of gradients for every slot: those of T itself where T is what sums are kept in.
template <class T>
class SlotGradients {
 public:
  using Sum = accumulate_t<T>;

  SlotGradients(const SlotPairs<T>& problem, T* dz)
      : numbers_(problem.rows * problem.slots * problem.features), dz_(dz), wide_(own ? 0 : numbers_) {
    Sum* sums = data();
    parallel_for(numbers_, 65536, [&](int64_t begin, int64_t end) { std::fill(sums + begin, sums + end, Sum(0)); });
  }

  Sum* data() const {
    if constexpr (own) {
      return dz_;
    } else {
      return wide_.data();
    }
  }

  /// Adds gradient [pairs of the chunk, 2 slots, features], given for joined keys, to the slots of their rows.
  template <class G>
  void add(const SlotPairs<T>& problem, int64_t begin, int64_t end, const int16_t* positions, const G* gradient) const {
    const int workers = workers_for((end - begin) * problem.slots * (problem.features + 1), 32768);
    parallel_workers(workers, [&](int worker) {
      const NodeShare share{worker, workers};
      for (int64_t p = begin; p < end; ++p) {
        for (int side = 0; side < 2; ++side) {
          const int64_t row = problem.row(p, side), first = (p - begin) * 2 * problem.slots;
          if (row < 0 || !share.owns(row)) continue;
          add_row(problem, row, positions + first + side * problem.slots, gradient + first * problem.features);
        }
      }
    });
  }

  /// Rounds the sums to T.
  void finish() const {
    if constexpr (!own) {
      parallel_for(numbers_, 65536, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) dz_[i] = T(wide_.data()[i]);
      });
    }
  }

 private:
  static constexpr bool own = std::is_same_v<T, Sum>;

  template <class G>
  void add_row(const SlotPairs<T>& problem, int64_t row, const int16_t* positions, const G* gradient) const {
    with_features(problem.features, [&](auto features) {
      Sum* to = data() + row * problem.slots * features;
      for (int64_t s = 0; s < problem.slots; ++s, to += features) {
        if (positions[s] < 0) continue;
        const G* from = gradient + positions[s] * features;
        for (int64_t f = 0; f < features; ++f) to[f] += static_cast<Sum>(from[f]);
      }
    });
  }

  int64_t numbers_;
  T* dz_;
  Temporary<Sum> wide_;
};

}  // namespace detail

/// pair_join_reference, to the bit.
template <class T>
void pair_join_cpu(const SlotPairs<T>& problem, int64_t* keys, int32_t* codes, T* z, int32_t* counts) {
  using Sum = accumulate_t<T>;
  const int64_t width = 2 * problem.slots, features = problem.features;
  parallel_for(problem.pairs, 64, [&](int64_t begin, int64_t end) {
    detail::SlotJoin join(problem.slots);
    const Temporary<int16_t> positions(width);
    const Temporary<Sum> sums(width * features);
    for (int64_t p = begin; p < end; ++p) {
      join.join(problem, p, positions.data());
      const int64_t count = join.count();
      counts[p] = static_cast<int32_t>(count);
      std::copy_n(join.keys(), count, keys + p * width);
      std::fill_n(keys + p * width + count, width - count, int64_t{-1});
      std::copy_n(join.codes(), count, codes + p * width);
      std::fill_n(codes + p * width + count, width - count, 0);
      T* to = z + p * width * features;
      if constexpr (std::is_same_v<T, Sum>) {
        detail::sum_joined(problem, p, join, positions.data(), to);
      } else {
        detail::sum_joined(problem, p, join, positions.data(), sums.data());
        for (int64_t i = 0; i < count * features; ++i) to[i] = T(sums.data()[i]);
      }
      std::fill_n(to + count * features, (width - count) * features, T(0.0f));
    }
  });
}

/// pair_join_backward_reference, to the bit.
template <class T>
void pair_join_backward_cpu(const SlotPairs<T>& problem, const T* dz_joined, T* dz) {
  const int64_t width = 2 * problem.slots;
  const detail::SlotGradients<T> gradients(problem, dz);
  const Temporary<int16_t> positions(std::min(problem.pairs, detail::pair_chunk) * width);
  for (int64_t first = 0; first < problem.pairs; first += detail::pair_chunk) {
    const int64_t last = std::min(first + detail::pair_chunk, problem.pairs);
    parallel_for(last - first, 64, [&](int64_t begin, int64_t end) {
      detail::SlotJoin join(problem.slots);
      for (int64_t p = begin; p < end; ++p) join.join(problem, first + p, positions.data() + p * width);
    });
    gradients.add(problem, first, last, positions.data(), dz_joined + first * width * problem.features);
  }
  gradients.finish();
}

}  // namespace anabranch
