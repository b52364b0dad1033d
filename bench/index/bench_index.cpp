// The index one operation at a time, beside std::map behind a shared mutex: bench_index [keys] [rounds].
//
// Prints one line of JSON for each map, kind of keys, work and number of threads; maps take turns within a round.
#include <cstdio>
#include <cstdlib>

#include "anabranch/index/locked_map.hpp"
#include "index_adapters.hpp"

int main(int argc, char** argv) {
  const int64_t keys = argc > 1 ? std::atoll(argv[1]) : 1'000'000;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 1;
  for (int round = 0; round < rounds; ++round) anabranch::bench_maps<anabranch::IndexMap, anabranch::LockedMap>(keys);
}
