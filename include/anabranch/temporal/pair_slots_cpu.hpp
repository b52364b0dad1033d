// A pair's slots joined, in the first cache or straight into the results: what pair_join and pair_encode share on the
// CPU. pair_numbers_cpu.hpp is the core.
#pragma once

#include <algorithm>
#include <optional>
#include <type_traits>

#include "anabranch/temporal/pair_join.hpp"
#include "anabranch/temporal/pair_numbers_cpu.hpp"

namespace anabranch::detail {

/// f(features) with the number as a constant where it is NAT's.
template <class F>
void with_features(int64_t features, F&& f) {
  features == 4 ? f(std::integral_constant<int64_t, 4>{}) : f(features);
}

/// What joins one pair after another.
class SlotJoin {
 public:
  template <class T>
  explicit SlotJoin(const SlotPairs<T>& problem)
      : slots_(problem.slots),
        slot_codes_(2 * slots_),
        keys_(2 * slots_ + 1),
        codes_(2 * slots_ + 1),
        used_(slots_ + 1) {
    for (int64_t i = 0; i < 2 * slots_; ++i) slot_codes_.data()[i] = problem.code(i % slots_, i >= slots_);
    slots_ <= few_slots ? void(few_.emplace(slots_)) : void(many_.emplace(slots_));
  }

  /// Finds the pair's distinct keys; positions [2 slots] receives the place of each slot's key among them, or -1.
  template <class T>
  void join(const SlotPairs<T>& problem, int64_t pair, int16_t* positions) {
    scratch_join(problem, pair, positions, [](int) { return [](int64_t, int64_t) {}; });
  }

  /// The same, and z [2 slots + 1, features]: the sums over the slots of each key.
  template <class T>
  void join(const SlotPairs<T>& problem, int64_t pair, int16_t* positions, accumulate_t<T>* z) {
    std::fill_n(z, (2 * slots_ + 1) * problem.features, accumulate_t<T>(0));
    with_features(problem.features, [&](auto features) {
      scratch_join(problem, pair, positions, [&](int side) { return adder(problem, pair, side, features, z); });
    });
  }

  int64_t count() const { return count_; }
  const int32_t* codes() const { return codes_.data(); }

  /// All that pair_join gives for a pair, where it shall be; returns the number of keys.
  template <class T>
  int64_t join_into(const SlotPairs<T>& problem, int64_t pair, int64_t* keys, int32_t* codes, accumulate_t<T>* z) {
    using Sum = accumulate_t<T>;
    const int64_t width = 2 * slots_;
    std::fill_n(keys, width, int64_t{-1});
    std::fill_n(codes, width, 0);
    std::fill_n(z, width * problem.features, Sum(0));
    with_features(problem.features, [&](auto features) {
      // A pair with an empty slot has at most width - 1 keys, so its last place is spare.
      walk(problem, pair, width, keys, [&](int side) {
        const int32_t* slot_codes = slot_codes_.data() + side * slots_;
        const auto add = adder(problem, pair, side, features, z);
        return [=](int64_t slot, int64_t number, int64_t) __attribute__((always_inline)) {
          codes[number - 1] |= slot_codes[slot];
          add(slot, number);
        };
      });
    });
    if (count_ < width) {
      keys[count_] = -1;
      codes[width - 1] = 0;
      std::fill_n(z + (width - 1) * problem.features, problem.features, Sum(0));
    }
    return count_;
  }

  /// f(slot) for the slots of one side that hold a key, in order.
  template <class T, class F>
  void for_used(const SlotPairs<T>& problem, int64_t pair, int side, F&& f) const {
    const int64_t row = problem.row(pair, side);
    if (row < 0) return;
    const int64_t* keys = problem.keys + row * slots_;
    int16_t* list = used_.data();
    int64_t used = 0;
    for (int64_t s = 0; s < slots_; ++s) {
      list[used] = static_cast<int16_t>(s);
      used += keys[s] >= 0;
    }
    for (int64_t e = 0; e < used; ++e) f(int64_t{list[e]});
  }

 private:
  // What follows is handed on by value: the table's bytes may be anything to the compiler, so what is reached through a
  // pointer would be loaded again for each slot.

  /// add(slot, number): the numbers of a side's slot to its key's.
  template <class T, class Features>
  static auto adder(const SlotPairs<T>& problem, int64_t pair, int side, Features features, accumulate_t<T>* z) {
    const T* row = problem.z + std::max<int64_t>(problem.row(pair, side), 0) * problem.slots * features;
    return [=](int64_t slot, int64_t number) __attribute__((always_inline)) {
      using Sum = accumulate_t<T>;
      const T* from = row + slot * features;
      Sum* to = z + (number - 1) * features;
      if constexpr (!std::is_integral_v<Features> && std::is_same_v<T, Sum>) {
        // As vectors: a loop over numbers that may be the ones read is not vectorised.
        constexpr int64_t bytes = Features::value * sizeof(Sum);
        using Vector [[gnu::vector_size(bytes)]] = Sum;
        Vector sum, term;
        __builtin_memcpy(&sum, to, bytes), __builtin_memcpy(&term, from, bytes);
        sum += term;
        __builtin_memcpy(to, &sum, bytes);
      } else {
        for (int64_t f = 0; f < features; ++f) to[f] += static_cast<Sum>(from[f]);
      }
    };
  }

  template <class T, class Adder>
  [[gnu::always_inline]] void scratch_join(const SlotPairs<T>& problem, int64_t pair, int16_t* all_positions,
                                           Adder&& adder_of) {
    int32_t* codes = codes_.data();
    std::fill_n(codes, 2 * slots_ + 1, 0);
    std::fill_n(all_positions, 2 * slots_, int16_t{-1});
    walk(problem, pair, 2 * slots_ + 1, keys_.data(), [&](int side) {
      const int32_t* slot_codes = slot_codes_.data() + side * slots_;
      int16_t* positions = all_positions + side * slots_;
      const auto add = adder_of(side);
      return [=](int64_t slot, int64_t number, int64_t empty) __attribute__((always_inline)) {
        codes[number - 1] |= slot_codes[slot];
        positions[slot] = static_cast<int16_t>((number - 1) | empty);
        add(slot, number);
      };
    });
  }

  /// each_of(side)(slot, number, empty) for all slots.
  template <class T, class EachOf>
  [[gnu::always_inline]] void walk(const SlotPairs<T>& problem, int64_t pair, int64_t spare, int64_t* keys,
                                   EachOf&& each_of) {
    few_ ? walk(*few_, problem, pair, spare, keys, each_of) : walk(*many_, problem, pair, spare, keys, each_of);
  }

  template <class Numbers, class T, class EachOf>
  [[gnu::always_inline]] void walk(Numbers& numbers, const SlotPairs<T>& problem, int64_t pair, int64_t spare,
                                   int64_t* keys, EachOf& each_of) {
    numbers.clear();
    const int64_t slots = slots_, z_bytes = problem.features * static_cast<int64_t>(sizeof(T));
    int64_t next = 1;
#pragma GCC unroll 1
    for (int side = 0; side < 2; ++side) {
      const int64_t row = problem.row(pair, side);
      if (row < 0) continue;
      const int64_t later = pair + 1 < problem.pairs ? std::max<int64_t>(problem.row(pair + 1, side), 0) : row;
      const int64_t* later_keys = problem.keys + later * slots;
      const char* later_z = reinterpret_cast<const char*>(problem.z) + later * slots * z_bytes;
      const auto ahead = [=](int64_t slot) __attribute__((always_inline)) {
        __builtin_prefetch(later_keys + slot);
        __builtin_prefetch(later_z + slot * z_bytes);
        __builtin_prefetch(later_z + slot * z_bytes + 64);
      };
      next = numbers.add(problem.keys + row * slots, slots, next, spare, keys, each_of(side), ahead);
    }
    count_ = next - 1;
  }

  int64_t slots_, count_ = 0;
  std::optional<FewKeyNumbers> few_;
  std::optional<ManyKeyNumbers> many_;
  Temporary<int32_t> slot_codes_;
  Temporary<int64_t> keys_;
  Temporary<int32_t> codes_;
  Temporary<int16_t> used_;
};

}  // namespace anabranch::detail
