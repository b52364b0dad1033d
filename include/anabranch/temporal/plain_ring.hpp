// A plain sequential ring of each node's last k events: what a program has without RecentNeighbors, for benchmarks.
//
// Layout: records of 16 bytes (int32 neighbour and event, int64 time), k in a row for a node, and apart from them the
// place of each node's oldest record. Records without an event are -1. A lookup copies a row in two pieces, oldest
// first; rows are asked for some queries ahead. One thread, nothing is checked, ids of 32 bits, events in the order in
// which they come.
//
// Bytes an edge for k = 10, inserts at both ends and three lookups: 3 rows of 160 bytes and 3 counters read, 2 records
// and 2 counters written back, 480 bytes of results.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace anabranch {

struct PlainRing {
  struct Record {
    int32_t neighbor, event;
    int64_t time;
  };
  static_assert(sizeof(Record) == 16);

  Record* records;  // [num_nodes, k]
  int32_t* oldest;  // [num_nodes]
  int64_t num_nodes, k;

  void clear() const {
    std::fill(records, records + num_nodes * k, Record{-1, -1, -1});
    std::fill(oldest, oldest + num_nodes, 0);
  }

  /// The k records of each of `size` nodes to out [size, k].
  void look_up(const int64_t* nodes, int64_t size, Record* out) const {
    constexpr int64_t ahead = 16;
    for (int64_t q = 0; q < size; ++q, out += k) {
      if (q + ahead < size) prefetch(nodes[q + ahead]);
      const Record* row = records + nodes[q] * k;
      const int64_t first = oldest[nodes[q]];
      std::memcpy(out, row + first, (k - first) * sizeof(Record));
      std::memcpy(out + k - first, row, first * sizeof(Record));
    }
  }

  /// Events first_event, first_event + 1, ... at both ends of each; a self-loop is one.
  void insert(const int64_t* src, const int64_t* dst, const int64_t* time, int64_t size, int64_t first_event) const {
    constexpr int64_t ahead = 8;
    for (int64_t i = 0; i < size; ++i) {
      if (i + ahead < size) prefetch(src[i + ahead]), prefetch(dst[i + ahead]);
      const auto event = static_cast<int32_t>(first_event + i);
      put(src[i], {static_cast<int32_t>(dst[i]), event, time[i]});
      if (src[i] != dst[i]) put(dst[i], {static_cast<int32_t>(src[i]), event, time[i]});
    }
  }

 private:
  void put(int64_t node, const Record& record) const {
    int32_t& at = oldest[node];
    records[node * k + at] = record;
    if (++at == k) at = 0;
  }
  void prefetch(int64_t node) const {
    const auto* row = reinterpret_cast<const char*>(records + node * k);
    __builtin_prefetch(&oldest[node]);
    for (int64_t at = 0; at < k * static_cast<int64_t>(sizeof(Record)); at += 64) __builtin_prefetch(row + at);
  }
};

}  // namespace anabranch
