// The core of a join on the CPU: the slots of a row, one after the other, find the numbers of their keys.
//
// Keys are numbered from 1 in the order in which they come; a hash table holds numbers, 0 where a place is free. Which
// keys are new and which slots are empty is what no branch predictor can know, so a slot is one path of arithmetic:
//   number = what its place holds, or the next number if that is 0
//   keys[next] = key                     written in any case, so that one compare answers for new and for known keys
//   keys[number] != key                  only now a branch: another key holds the place; some in a hundred slots
// An empty slot takes place -1, which stays free, and its key's sums go to a spare number. A row without empty slots,
// as rows are once a cache is warm, is spared all of that. Measured for 98 slots and 4 floats of z, in the first
// cache: some 340 ns for full rows of 49, where a loop with branches for new keys took 550 to 800.
//
// Up to 64 slots the table is 2 KB of bytes, 16 places for each of 128 keys, its size a constant; it is cleared before
// each pair by 32 stores. Beyond that it has eight places a key of 16 bits.
#pragma once

#include <algorithm>
#include <bit>
#include <cstring>

#include "anabranch/core/memory.hpp"

namespace anabranch::detail {

inline constexpr int64_t few_slots = 64;

/// Places of a table: kBits of a hash, or as many as asked for where that is 0.
template <class Number_, int kBits>
class KeyNumbers {
 public:
  using Number = Number_;

  explicit KeyNumbers(int64_t slots)
      : bits_(kBits ? kBits : std::countr_zero(std::bit_ceil(static_cast<uint64_t>(std::max<int64_t>(16 * slots, 2))))),
        table_(places() + 1) {}

  void clear() { std::memset(table_.data(), 0, (places() + 1) * sizeof(Number)); }

  /// Numbers the slots of a row from `next` on and returns what is next then. keys [number - 1] receives the keys;
  /// each(slot, number, empty) is called in order, where `empty` is all ones for an empty slot, with number `spare`,
  /// and 0 otherwise; ahead(slot) before each eight slots. What keys has at the returned number is undefined.
  template <class Each, class Ahead>
  [[gnu::always_inline]] int64_t add(const int64_t* row, int64_t slots, int64_t next, int64_t spare, int64_t* keys,
                                     Each each, Ahead ahead) {
    int64_t all = 0;
    for (int64_t s = 0; s < slots; ++s) all |= row[s];
    return all < 0 ? add_row<false>(row, slots, next, spare, keys, each, ahead)
                   : add_row<true>(row, slots, next, spare, keys, each, ahead);
  }

 private:
  static constexpr int64_t block = 8;

  template <bool kFull, class Each, class Ahead>
  [[gnu::always_inline]] int64_t add_row(const int64_t* row, int64_t slots, int64_t next, int64_t spare, int64_t* keys,
                                         Each each, Ahead ahead) {
    Number* table = table_.data() + 1;
    int64_t begin = 0;
    for (; begin + block <= slots; begin += block) {
      ahead(begin);
#pragma GCC unroll 8
      for (int64_t s = begin; s < begin + block; ++s) next = add_slot<kFull>(row[s], s, next, spare, keys, table, each);
    }
    ahead(begin);
    for (int64_t s = begin; s < slots; ++s) next = add_slot<kFull>(row[s], s, next, spare, keys, table, each);
    return next;
  }

  template <bool kFull, class Each>
  [[gnu::always_inline]] int64_t add_slot(int64_t key, int64_t slot, int64_t next, int64_t spare, int64_t* keys,
                                          Number* table, Each each) {
    const int64_t empty = kFull ? 0 : key >> 63;
    const int64_t place = static_cast<int64_t>(static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u >> shift()) | empty;
    const int64_t held = table[place];
    const int64_t unheld = (held - 1) >> 63;
    int64_t number = held | (unheld & next);
    keys[next - 1] = key;
    if (__builtin_expect(keys[number - 1] != key, 0)) {
      number = search(key, place, next, keys);
      next += number == next;
    } else {
      table[place] = static_cast<Number>(number & ~empty);
      next -= unheld ^ empty;  // an empty slot's place is unheld
    }
    if (!kFull) number += empty & (spare - number);
    each(slot, number, empty);
    return next;
  }

  /// The number of a key whose place another one holds; `next`, from now on, for a new key.
  [[gnu::noinline]] int64_t search(int64_t key, int64_t place, int64_t next, const int64_t* keys) {
    Number* table = table_.data() + 1;
    while (true) {
      place = (place + 1) & (places() - 1);
      const int64_t number = table[place];
      if (number != 0 && keys[number - 1] != key) continue;
      if (number != 0) return number;
      table[place] = static_cast<Number>(next);
      return next;
    }
  }

  int bits() const { return kBits ? kBits : bits_; }
  int shift() const { return 64 - bits(); }
  int64_t places() const { return int64_t{1} << bits(); }

  int bits_;
  Temporary<Number> table_;
};

using FewKeyNumbers = KeyNumbers<uint8_t, 11>;
using ManyKeyNumbers = KeyNumbers<uint16_t, 0>;

}  // namespace anabranch::detail
