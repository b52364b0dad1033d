// How bench_index.cpp drives a map, and the index as one.
#pragma once

#include <cstdio>
#include <memory>

#include "anabranch/index/bskiplist.hpp"
#include "anabranch/index/workloads.hpp"

namespace anabranch {

/// In the order of IndexWork.
inline constexpr const char* index_work_names[] = {"load",        "find", "find_zipf",   "update_zipf",
                                                   "insert_find", "scan", "erase_insert"};

struct IndexMap {
  static constexpr const char* name = "anabranch";
  BSkipList<int64_t> index;

  bool insert(int64_t key, uint64_t value) { return index.insert(key, value); }
  void assign(int64_t key, uint64_t value) { index.insert_or_assign(key, value); }
  bool erase(int64_t key) { return index.erase(key); }
  bool find(int64_t key, uint64_t& value) const {
    const auto found = index.find(key);
    return found && (value = *found, true);
  }
  uint64_t scan(int64_t first, int limit) const {
    uint64_t sum = 0;
    index.visit(first, limit, [&](int64_t, uint64_t value) { sum += value; });
    return sum;
  }
  int64_t memory_bytes() const { return index.memory_bytes(); }
};

/// Whether a map is to be left out: peers that cannot do something, or that hang in it, say so by a static function
/// `lacks` with these arguments.
template <class Map>
bool lacks_work(IndexKeys kind, IndexWork work, int num_threads) {
  if constexpr (requires { Map::lacks(kind, work, num_threads); }) return Map::lacks(kind, work, num_threads);
  return false;
}

template <class Map>
void bench_map(IndexKeys kind, const char* kind_name, int64_t keys, int num_threads) {
  Map map;
  WorkloadRunner<Map> runner(map, kind);
  for (const IndexWork work : index_works) {
    if (lacks_work<Map>(kind, work, num_threads)) continue;
    const IndexMeasurement m = runner.run(work, workload_operations(work, keys), num_threads);
    std::printf(
        "{\"map\": \"%s\", \"keys\": \"%s\", \"n\": %lld, \"threads\": %d, \"work\": \"%s\", \"mops\": %.3f, "
        "\"p50_ns\": %.0f, \"p99_ns\": %.0f, \"bytes_per_key\": %.1f}\n",
        Map::name, kind_name, static_cast<long long>(keys), num_threads, index_work_names[static_cast<int>(work)],
        1e-6 * m.operations_per_second, m.p50_ns, m.p99_ns, m.bytes_per_key);
    std::fflush(stdout);
  }
}

/// Every map in turn, for each kind of keys and one or two threads.
template <class... Maps>
void bench_maps(int64_t keys) {
  for (int num_threads : {1, 2}) (bench_map<Maps>(IndexKeys::random, "random", keys, num_threads), ...);
  constexpr std::pair<IndexKeys, const char*> others[] = {{IndexKeys::sequential, "sequential"},
                                                          {IndexKeys::odd, "odd"},
                                                          {IndexKeys::multiples, "multiples of 2^24"},
                                                          {IndexKeys::timestamps, "timestamps"}};
  for (const auto& [kind, kind_name] : others) (bench_map<Maps>(kind, kind_name, keys, 1), ...);
}

}  // namespace anabranch
