// std::map behind a shared mutex: what a program has without an index, for workloads.hpp.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <shared_mutex>

namespace anabranch {

struct LockedMap {
  static constexpr const char* name = "std::map";
  std::map<int64_t, uint64_t> map;
  mutable std::shared_mutex mutex;

  bool insert(int64_t key, uint64_t value) {
    const std::unique_lock lock(mutex);
    return map.emplace(key, value).second;
  }
  void assign(int64_t key, uint64_t value) {
    const std::unique_lock lock(mutex);
    map[key] = value;
  }
  bool erase(int64_t key) {
    const std::unique_lock lock(mutex);
    return map.erase(key) > 0;
  }
  bool find(int64_t key, uint64_t& value) const {
    const std::shared_lock lock(mutex);
    const auto at = map.find(key);
    return at != map.end() && (value = at->second, true);
  }
  uint64_t scan(int64_t first, int limit) const {
    const std::shared_lock lock(mutex);
    uint64_t sum = 0;
    for (auto at = map.lower_bound(first); at != map.end() && limit-- > 0; ++at) sum += at->second;
    return sum;
  }
  int64_t memory_bytes() const { return static_cast<int64_t>(map.size()) * 64; }  // 48 bytes of node in malloc's 64
};

}  // namespace anabranch
