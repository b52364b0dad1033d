// What the index is measured by: YCSB's mixes and the paper's, on any map, one thread or several.
//
// A Map has `insert(key, value)`, `assign(key, value)`, `find(key, value&)`, `erase(key)`, `scan(first, limit)`
// returning how many it saw, and `memory_bytes()`. Every operation is one call; batches are measured where they are
// used, in Python.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <limits>
#include <thread>
#include <vector>

namespace anabranch {

/// Keys that the index must bear alike: heights from an identity hash make a list of all but the first two.
enum class IndexKeys { random, sequential, odd, multiples, timestamps };

enum class IndexWork {
  load,          // insert new keys
  find,          // uniform hits
  find_zipf,     // hits, Zipf 0.99 (YCSB C)
  update_zipf,   // half finds, half assignments, Zipf 0.99 (YCSB A)
  insert_find,   // half finds, half new keys (the paper's A)
  scan,          // 95 % scans of 1 to 100 keys, 5 % new keys (YCSB E)
  erase_insert,  // a window that slides: the oldest key out, a new one in
};

/// All of them in the order that they run in: each meets the map as the one before left it.
inline constexpr IndexWork index_works[] = {IndexWork::load,        IndexWork::find, IndexWork::find_zipf,
                                            IndexWork::update_zipf, IndexWork::scan, IndexWork::insert_find,
                                            IndexWork::erase_insert};

/// So many operations of each tell how fast a map of so many keys is.
inline int64_t workload_operations(IndexWork work, int64_t keys) {
  const int64_t operations = std::max<int64_t>(20'000, keys / 5);
  return work == IndexWork::load           ? keys
         : work == IndexWork::scan         ? operations / 4
         : work == IndexWork::erase_insert ? operations / 2
                                           : operations;
}

struct IndexMeasurement {
  double operations_per_second = 0;
  double p50_ns = 0, p99_ns = 0;  // of single operations, one in sixteen timed
  double bytes_per_key = 0;
};

/// splitmix64's finaliser: a bijection, so different numbers give different keys.
inline uint64_t mixed_bits(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

inline int64_t workload_key(IndexKeys kind, uint64_t i) {
  switch (kind) {
    case IndexKeys::random:
      return static_cast<int64_t>(mixed_bits(i));
    case IndexKeys::sequential:
      return static_cast<int64_t>(i);
    case IndexKeys::odd:
      return static_cast<int64_t>(mixed_bits(i) | 1);
    case IndexKeys::multiples:
      return static_cast<int64_t>(mixed_bits(i) << 24);
    case IndexKeys::timestamps:  // nanoseconds, a millisecond apart, arriving up to a second late
      return 1'700'000'000'000'000'000 + static_cast<int64_t>(i * 1'000'000 + mixed_bits(i) % 1'000'000'000);
  }
  return 0;
}

/// Ranks of a Zipf distribution, scattered over [0, n) (Gray et al., SIGMOD 1994, as YCSB has it).
class ZipfIndices {
 public:
  explicit ZipfIndices(uint64_t n, double theta = 0.99) : n_(n), theta_(theta) {
    for (uint64_t i = 1; i <= std::min<uint64_t>(n, 100'000); ++i) zeta_ += std::pow(static_cast<double>(i), -theta);
    // The tail as an integral: its error is below a thousandth.
    if (n > 100'000) zeta_ += (std::pow(double(n), 1 - theta) - std::pow(1e5, 1 - theta)) / (1 - theta);
    const double zeta2 = 1 + std::pow(0.5, theta);
    eta_ = (1 - std::pow(2.0 / static_cast<double>(n), 1 - theta)) / (1 - zeta2 / zeta_);
  }
  uint64_t operator()(uint64_t random) const {
    const double u = static_cast<double>(random >> 11) * 0x1p-53, uz = u * zeta_;
    uint64_t rank = 0;
    if (uz >= 1) {
      rank = uz < 1 + std::pow(0.5, theta_)
                 ? 1
                 : static_cast<uint64_t>(static_cast<double>(n_) * std::pow(eta_ * u - eta_ + 1, 1 / (1 - theta_)));
    }
    return mixed_bits(std::min(rank, n_ - 1)) % n_;
  }

 private:
  uint64_t n_;
  double theta_, zeta_ = 0, eta_ = 0;
};

/// One map and how many keys it has had.
template <class Map>
class WorkloadRunner {
 public:
  WorkloadRunner(Map& map, IndexKeys keys) : map_(map), keys_(keys) {}

  /// `operations` in all, shared among the threads. Streams of keys are made before the clock starts.
  IndexMeasurement run(IndexWork work, int64_t operations, int num_threads) {
    std::vector<Thread> threads(num_threads);
    const int64_t share = operations / num_threads / 20 * 20;
    for (int t = 0; t < num_threads; ++t) prepare(threads[t], work, share, t, num_threads);
    if (inserts(work)) inserted_ += share / every(work) * num_threads;
    if (work == IndexWork::erase_insert) erased_ += share * num_threads;
    const auto start = Clock::now();
    std::vector<std::thread> others;
    for (int t = 1; t < num_threads; ++t) others.emplace_back([&, t] { execute(threads[t]); });
    execute(threads[0]);
    for (std::thread& other : others) other.join();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    std::vector<float> latencies;
    for (Thread& thread : threads) latencies.insert(latencies.end(), thread.latencies.begin(), thread.latencies.end());
    std::sort(latencies.begin(), latencies.end());
    const auto quantile = [&](double q) {
      return latencies.empty() ? 0.0 : latencies[size_t(q * (latencies.size() - 1))];
    };
    return {static_cast<double>(share * num_threads) / seconds, quantile(0.5), quantile(0.99),
            static_cast<double>(map_.memory_bytes()) / static_cast<double>(std::max<int64_t>(1, inserted_ - erased_))};
  }

 private:
  using Clock = std::chrono::steady_clock;

  struct Step {
    int64_t key;
    int kind;  // 0: find, 1: insert, 2: assign, 3: insert and erase `other`, above: scan of so many
    int64_t other;
  };
  struct Thread {
    std::vector<Step> steps;
    std::vector<float> latencies;
    uint64_t sum = 0;
  };

  /// Of so many operations one inserts a new key.
  static int64_t every(IndexWork work) { return work == IndexWork::insert_find ? 2 : work == IndexWork::scan ? 20 : 1; }
  static bool inserts(IndexWork work) {
    return work != IndexWork::find && work != IndexWork::find_zipf && work != IndexWork::update_zipf;
  }

  void prepare(Thread& thread, IndexWork work, int64_t share, int t, int num_threads) const {
    thread.steps.resize(share);
    thread.latencies.reserve(share / 16 + 1);
    const uint64_t present = std::max<int64_t>(1, inserted_ - erased_);
    const ZipfIndices zipf(std::max<uint64_t>(2, present));
    const uint64_t seed = mixed_bits(inserted_ * 31 + t * 977 + static_cast<int>(work));
    const auto key = [&](uint64_t index) { return workload_key(keys_, index); };
    for (int64_t i = 0; i < share; ++i) {
      const uint64_t random = mixed_bits(seed + i), turn = (i / every(work)) * num_threads + t;
      const bool is_new = inserts(work) && i % every(work) == 0;
      const bool skewed = work == IndexWork::find_zipf || work == IndexWork::update_zipf;
      const int64_t old = key(erased_ + (skewed ? zipf(random) : random % present));
      if (work == IndexWork::erase_insert) {
        thread.steps[i] = {key(inserted_ + turn), 3, key(erased_ + turn)};
      } else if (is_new) {
        thread.steps[i] = {key(inserted_ + turn), 1, 0};
      } else if (work == IndexWork::scan) {
        thread.steps[i] = {old, static_cast<int>(4 + mixed_bits(random) % 100), 0};
      } else {
        thread.steps[i] = {old, work == IndexWork::update_zipf && i % 2 == 0 ? 2 : 0, 0};
      }
    }
  }

  void execute(Thread& thread) {
    for (size_t i = 0; i < thread.steps.size(); ++i) {
      if (i % 16 != 0) {
        thread.sum += apply(thread.steps[i]);
        continue;
      }
      const auto start = Clock::now();
      thread.sum += apply(thread.steps[i]);
      thread.latencies.push_back(std::chrono::duration<float, std::nano>(Clock::now() - start).count());
    }
  }

  uint64_t apply(const Step& step) {
    uint64_t value = 0;
    switch (step.kind) {
      case 0:
        return map_.find(step.key, value) ? value : 0;
      case 1:
        return map_.insert(step.key, static_cast<uint64_t>(step.key) + 1);
      case 2:
        map_.assign(step.key, static_cast<uint64_t>(step.key) + 2);
        return 0;
      case 3:
        map_.insert(step.key, static_cast<uint64_t>(step.key) + 1);
        return map_.erase(step.other);
      default:
        return map_.scan(step.key, step.kind - 3);
    }
  }

  Map& map_;
  IndexKeys keys_;
  int64_t inserted_ = 0, erased_ = 0;
};

}  // namespace anabranch
