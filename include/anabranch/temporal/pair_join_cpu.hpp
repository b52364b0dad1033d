// The join of pairs of slot sets (pair_join.hpp defines it) on the CPU: a pair at a time (pair_slots_cpu.hpp), in one
// pass over its slots that writes keys, codes and sums where they shall be.
//
// A pair reads its two rows (2 slots * (8 + features * sizeof(T)) bytes) and writes as much and 8 slots + 4 bytes of
// codes and count: 5.1 KB for 49 slots and 4 floats. Floor: those bytes over the bandwidth of the cache or memory they
// lie in. A pair's results are filled with what unused places have before the pass, which brings them to the first
// cache, so the pass adds to what is there and no tail is left to fill; the rows of the next pair are asked for on the
// way. Types narrower than their sums are summed in scratch and rounded from there.
//
// The backward walks the pairs in chunks: positions are found on several threads, then each worker adds to the rows it
// owns (NodeShare) in the order of the pairs, so sums have one order for every number of threads.
#pragma once

#include <algorithm>
#include <type_traits>

#include "anabranch/core/memory.hpp"
#include "anabranch/core/parallel.hpp"
#include "anabranch/temporal/events.hpp"
#include "anabranch/temporal/pair_slots_cpu.hpp"

namespace anabranch {

namespace detail {

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
  constexpr bool in_place = std::is_same_v<T, Sum>;
  const int64_t width = 2 * problem.slots, numbers = width * problem.features;
  parallel_for(problem.pairs, 64, [&](int64_t begin, int64_t end) {
    detail::SlotJoin join(problem);
    const Temporary<Sum> sums(in_place ? 0 : numbers);
    for (int64_t p = begin; p < end; ++p) {
      T* to = z + p * numbers;
      Sum* pair_sums;
      if constexpr (in_place) {
        pair_sums = to;
      } else {
        pair_sums = sums.data();
      }
      counts[p] = static_cast<int32_t>(join.join_into(problem, p, keys + p * width, codes + p * width, pair_sums));
      if constexpr (!in_place) {
        for (int64_t i = 0; i < numbers; ++i) to[i] = T(pair_sums[i]);
      }
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
      detail::SlotJoin join(problem);
      for (int64_t p = begin; p < end; ++p) join.join(problem, first + p, positions.data() + p * width);
    });
    gradients.add(problem, first, last, positions.data(), dz_joined + first * width * problem.features);
  }
  gradients.finish();
}

}  // namespace anabranch
