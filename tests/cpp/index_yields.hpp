// The index with other threads let in between where it matters: included before any header of the index, in programs
// that link no other copy of it.
#pragma once

#define ANABRANCH_INDEX_YIELD(point) ANABRANCH_YIELD_##point
#define ANABRANCH_YIELD_entered anabranch::testing::at_point()
#define ANABRANCH_YIELD_locking anabranch::testing::at_point()
#define ANABRANCH_YIELD_taking anabranch::testing::at_point()
#define ANABRANCH_YIELD_moving anabranch::testing::at_point()
#define ANABRANCH_YIELD_locked anabranch::testing::at_point()
#define ANABRANCH_YIELD_unlocking anabranch::testing::at_point()
/// The bug that the tests plant: what was read is believed without asking whether it has changed.
#define ANABRANCH_YIELD_unchanged \
  anabranch::testing::at_point(); \
  if (anabranch::testing::interruption.believes_all) return true

#include <cstdint>
#include <thread>

namespace anabranch::testing {

/// What a thread does at the points that version_lock.hpp names.
struct Interruption {
  uint64_t random = 1;
  int one_in = 0;  // yields at one point in so many; 0: never
  bool believes_all = false;

  uint64_t next() {  // xorshift64
    random ^= random << 13;
    random ^= random >> 7;
    return random ^= random << 17;
  }
};
inline thread_local Interruption interruption;

[[gnu::noinline]] inline void at_point() {
  Interruption& mine = interruption;
  if (mine.one_in > 0 && mine.next() % static_cast<uint64_t>(mine.one_in) == 0) {
    // Now and then another thread gets the processor, otherwise one on another core gets ahead.
    if (mine.next() % 2 == 0) {
      std::this_thread::yield();
    } else {
      for (uint64_t spins = mine.next() % 400; spins-- > 0;) asm volatile("");
    }
  }
}

}  // namespace anabranch::testing
