// What the programs in this folder say when something is wrong: they stop with the place and the values.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "anabranch/core/simt.cuh"

inline void expect(bool condition, const char* what, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (condition) return;
  const auto schedule = anabranch::simt::current_schedule();
  std::fprintf(stderr, "%s:%d: %s (order %d, seed %llu)\n", file, line, what, static_cast<int>(schedule.order),
               static_cast<unsigned long long>(schedule.seed));
  std::exit(1);
}

/// f() must throw a Fault of this kind.
template <class F>
void expect_fault(anabranch::simt::Fault::Kind kind, F&& f, const char* file = __builtin_FILE(),
                  int line = __builtin_LINE()) {
  try {
    f();
  } catch (const anabranch::simt::Fault& fault) {
    expect(fault.kind == kind, fault.what(), file, line);
    return;
  }
  expect(false, "a wrong kernel went unnoticed", file, line);
}
