// How fast single operations are, without Python between them: the measurement behind `bench index`.
#include <algorithm>
#include <limits>

#include "anabranch/index/functions.hpp"
#include "anabranch/index/locked_map.hpp"
#include "anabranch/index/workloads.hpp"
#include "torch.hpp"

namespace anabranch {
namespace {

/// The index as everything in this library calls it: by the functions of the instruction set in use.
class IndexByFunctions {
 public:
  bool insert(int64_t key, uint64_t value) { return inserted(key, value, false); }
  void assign(int64_t key, uint64_t value) { inserted(key, value, true); }
  bool erase(int64_t key) {
    uint64_t value;
    return functions_.erase(arena_.view(), &key, &value);
  }
  bool find(int64_t key, uint64_t& value) const { return functions_.find(arena_.view(), &key, &value); }
  uint64_t scan(int64_t first, int limit) const {
    constexpr int64_t last = std::numeric_limits<int64_t>::max();
    int64_t keys[longest_scan], values[longest_scan];
    const int64_t seen = functions_.range(arena_.view(), &first, &last, std::min(limit, longest_scan), keys, values);
    uint64_t sum = 0;
    for (int64_t i = 0; i < seen; ++i) sum += static_cast<uint64_t>(values[i]);
    return sum;
  }
  int64_t memory_bytes() const {
    return __atomic_load_n(arena_.view().control + IndexControl::used, __ATOMIC_RELAXED) * index_node_words * 8;
  }

 private:
  static constexpr int longest_scan = 100;

  bool inserted(int64_t key, uint64_t value, bool assign) {
    const IndexStatus status = functions_.insert(arena_.view(), &key, value, assign);
    if (status == IndexStatus::refused) throw std::bad_alloc();
    return status == IndexStatus::changed;
  }

  OwnedIndexArena arena_{1};
  const IndexFunctions& functions_ = index_functions(1);
};

template <class Map>
void measure(IndexKeys kind, int64_t num_keys, int num_threads, double* row) {
  Map map;
  WorkloadRunner<Map> runner(map, kind);
  for (const IndexWork work : index_works) {
    const IndexMeasurement m = runner.run(work, workload_operations(work, num_keys), num_threads);
    for (const double number : {m.operations_per_second, m.p50_ns, m.p99_ns, m.bytes_per_key}) *row++ = number;
  }
}

Tensor throughput(int64_t map, int64_t keys, int64_t num_keys, int64_t num_threads) {
  constexpr const char* op = "bskiplist_throughput";
  check(map == 0 || map == 1, op, ": map is ", map, ", must be 0 (the index) or 1 (std::map behind a shared mutex)");
  check(keys >= 0 && keys <= static_cast<int64_t>(IndexKeys::timestamps), op, ": keys is ", keys,
        ", must be 0 to 4 (random, sequential, odd, multiples, timestamps)");
  check(num_keys >= 1000 && num_keys <= int64_t{1} << 32, op, ": num_keys is ", num_keys, ", must be 1000 to 2^32");
  check(num_threads >= 1 && num_threads <= 1000, op, ": num_threads is ", num_threads, ", must be 1 to 1000");
  const Tensor measured = torch::stable::empty({std::size(index_works), 4}, ScalarType::Double);
  auto* row = static_cast<double*>(measured.mutable_data_ptr());
  (map == 0 ? measure<IndexByFunctions> : measure<LockedMap>)(static_cast<IndexKeys>(keys), num_keys,
                                                              static_cast<int>(num_threads), row);
  return measured;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def("bskiplist_throughput(int map, int keys, int num_keys, int num_threads) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CompositeExplicitAutograd, m) {
  m.impl("bskiplist_throughput", TORCH_BOX(&throughput));
}

}  // namespace anabranch
