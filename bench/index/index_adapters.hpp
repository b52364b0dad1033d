// How bench_index.cpp drives a map, and the index as one.
#pragma once

#include <cstdio>
#include <memory>

#include "anabranch/index/bskiplist.hpp"
#include "anabranch/index/workloads.hpp"

namespace anabranch {

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

template <class Map>
void bench_map(IndexKeys kind, const char* kind_name, int64_t keys, int num_threads) {
  Map map;
  WorkloadRunner<Map> runner(map, kind);
  const auto line = [&](const char* work_name, IndexWork work, int64_t operations) {
    const IndexMeasurement m = runner.run(work, operations, num_threads);
    std::printf(
        "{\"map\": \"%s\", \"keys\": \"%s\", \"n\": %lld, \"threads\": %d, \"work\": \"%s\", \"mops\": %.3f, "
        "\"p50_ns\": %.0f, \"p99_ns\": %.0f, \"bytes_per_key\": %.1f}\n",
        Map::name, kind_name, static_cast<long long>(keys), num_threads, work_name, 1e-6 * m.operations_per_second,
        m.p50_ns, m.p99_ns, m.bytes_per_key);
    std::fflush(stdout);
  };
  line("load", IndexWork::load, keys);
  const int64_t operations = std::max<int64_t>(100'000, keys / 5);
  line("find", IndexWork::find, operations);
  line("find_zipf", IndexWork::find_zipf, operations);
  line("update_zipf", IndexWork::update_zipf, operations);
  line("scan", IndexWork::scan, operations / 4);
  line("insert_find", IndexWork::insert_find, operations);
  line("erase_insert", IndexWork::erase_insert, operations / 2);
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
