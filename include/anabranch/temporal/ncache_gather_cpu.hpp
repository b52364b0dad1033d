// The N-cache's gather (ncache_read.hpp defines it) on the CPU: four copies a row, the next row's asked for before.
#pragma once

#include <cstring>

#include "anabranch/core/parallel.hpp"
#include "anabranch/temporal/ncache_read.hpp"

namespace anabranch {

/// ncache_gather_reference.
template <class T>
void ncache_gather_cpu(const NCacheGather<T>& gather) {
  const int64_t slots = gather.slots, numbers = slots * gather.state_size;
  const auto prefetch = [](const void* from, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at);
  };
  parallel_for(gather.num_rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      if (row + 1 < end) {
        const int64_t next = gather.nodes[row + 1];
        prefetch(gather.keys + next * slots, slots * sizeof(int64_t));
        prefetch(gather.event_ids + next * slots, slots * sizeof(int64_t));
        prefetch(gather.times + next * slots, slots * sizeof(int64_t));
        prefetch(gather.states + next * numbers, numbers * sizeof(T));
      }
      const int64_t node = gather.nodes[row];
      std::memcpy(gather.row_keys + row * slots, gather.keys + node * slots, slots * sizeof(int64_t));
      std::memcpy(gather.row_event_ids + row * slots, gather.event_ids + node * slots, slots * sizeof(int64_t));
      std::memcpy(gather.row_times + row * slots, gather.times + node * slots, slots * sizeof(int64_t));
      std::memcpy(gather.row_states + row * numbers, gather.states + node * numbers, numbers * sizeof(T));
      gather.row_keys[row * slots] = node;
    }
  });
}

}  // namespace anabranch
