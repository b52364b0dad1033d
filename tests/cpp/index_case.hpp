// What the tests of the index share: keys worth trying, and an index beside the std::map that it must agree with.
#pragma once

#include <limits>
#include <map>
#include <optional>
#include <tuple>

#include "anabranch/index/bskiplist.hpp"
#include "cpu_kernels.hpp"

namespace anabranch::testing {

inline int64_t random_int(int64_t n) { return static_cast<int64_t>(random_bits() % static_cast<uint64_t>(n)); }
inline int64_t random_word() { return static_cast<int64_t>(uint64_t{random_bits()} << 32 | random_bits()); }

/// The ends of the range and what lies beside zero, one of a few hundred neighbours, or anything.
inline int64_t tried_word() {
  constexpr int64_t least = std::numeric_limits<int64_t>::min(), most = std::numeric_limits<int64_t>::max();
  constexpr int64_t edges[] = {least, least + 1, -1, 0, 1, most - 1, most, int64_t{1} << 53, -(int64_t{1} << 53)};
  const int64_t kind = random_int(16);
  return kind == 0 ? edges[random_int(std::size(edges))] : kind < 12 ? random_int(600) - 300 : random_word();
}

template <class Key>
Key tried_key() {
  if constexpr (std::is_same_v<Key, double>) {
    using Limits = std::numeric_limits<double>;
    constexpr double edges[] = {
        -Limits::infinity(),   Limits::lowest(), -Limits::min(),    -0.0, 0.0, Limits::denorm_min(),
        -Limits::denorm_min(), Limits::max(),    Limits::infinity()};
    if (random_int(12) == 0) return edges[random_int(std::size(edges))];
    return static_cast<double>(tried_word()) / 4;
  } else if constexpr (std::is_same_v<Key, std::pair<int64_t, int64_t>>) {
    return {random_int(4) == 0 ? tried_word() : random_int(3), tried_word()};
  } else {
    return static_cast<Key>(tried_word());
  }
}

/// Takes entries out of their parents with the given chance, but for the first of each: the nodes stay, and are reached
/// from their left neighbours.
template <class Key>
void forget_entries(const BSkipList<Key>& index, int percent) {
  const index_detail::Tree<compiled_cpu_isa, IndexKeyTraits<Key>::words> tree{index.arena()};
  for (int64_t id = index_root; id < index.arena().control[IndexControl::used]; ++id) {
    const auto node = tree.node(static_cast<uint32_t>(id));
    for (int i = node.level() > 0 ? node.count() : 0; i-- > 1;) {
      if (random_int(100) < percent) node.erase(i);
    }
  }
}

/// An index and what must be in it; every operation is done to both and its result compared.
template <class Index, class Compare = std::less<typename Index::key_type>>
struct Twin {
  using Key = typename Index::key_type;
  using Map = std::map<Key, uint64_t, Compare>;

  Index& index;
  Map map;

  explicit Twin(Index& index) : index(index) {}

  static std::optional<std::pair<Key, uint64_t>> entry(const Map& map, typename Map::const_iterator at) {
    return at == map.end() ? std::nullopt : std::optional<std::pair<Key, uint64_t>>(*at);
  }

  void insert(const Key& key, uint64_t value, bool assign) {
    const bool fresh = map.count(key) == 0;
    expect((assign ? index.insert_or_assign(key, value) : index.insert(key, value)) == fresh, "insert says it was new");
    if (assign || fresh) map[key] = value;
  }
  void erase(const Key& key) { expect(index.erase(key) == (map.erase(key) > 0), "erase says it was there"); }

  void look(const Key& key) {
    const auto at = map.find(key);
    expect(index.find(key) == (at == map.end() ? std::nullopt : std::optional(at->second)), "find");
    expect(index.lower_bound(key) == entry(map, map.lower_bound(key)), "lower_bound");
  }
  void look_at_range(const Key& first, const Key& last, bool inclusive) {
    auto at = map.lower_bound(first);
    const auto end = inclusive ? map.upper_bound(last) : map.lower_bound(last);
    int64_t count = 0;
    const auto range = index.range(first, last, inclusive);
    for (const auto& [key, value] : range) {
      expect(at != map.end() && key == at->first && value == at->second, "range");
      ++at, ++count;
    }
    expect(Compare{}(last, first) ? count == 0 : at == end, "range ends where it must");
    expect(range.count() == count, "count of a range");
  }

  /// Returns how many keys were refused; none of those is there.
  int64_t insert_batch(const std::vector<Key>& keys, bool assign) {
    std::vector<uint64_t> values(keys.size());
    for (uint64_t& value : values) value = static_cast<uint64_t>(random_word());
    std::vector<IndexStatus> status(keys.size());
    index.insert(keys, values, status, assign);
    int64_t refused = 0;
    for (size_t i = 0; i < keys.size(); ++i) {
      const bool fresh = map.count(keys[i]) == 0, is_refused = status[i] == IndexStatus::refused;
      refused += is_refused;
      expect(is_refused ? fresh : (status[i] == IndexStatus::changed) == fresh, "insert of a batch says what is new");
      if (!is_refused && (assign || fresh)) map[keys[i]] = values[i];
    }
    return refused;
  }
  void erase_batch(const std::vector<Key>& keys) {
    std::vector<IndexStatus> status(keys.size());
    index.erase(keys, status);
    for (size_t i = 0; i < keys.size(); ++i) {
      const bool was_there = map.erase(keys[i]) > 0;
      expect(status[i] == (was_there ? IndexStatus::changed : IndexStatus::unchanged), "erase of a batch");
    }
  }
  void look_batch(const std::vector<Key>& keys) {
    std::vector<uint64_t> values(keys.size());
    std::vector<Key> found_keys(keys.size());
    const auto found = std::make_unique<bool[]>(keys.size());
    const std::span found_span(found.get(), keys.size());
    index.find(keys, values, found_span);
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto at = map.find(keys[i]);
      expect(found[i] == (at != map.end()) && values[i] == (found[i] ? at->second : 0), "find of a batch");
    }
    index.lower_bound(keys, found_keys, values, found_span);
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto at = map.lower_bound(keys[i]);
      expect(found[i] == (at != map.end()), "lower_bound of a batch says whether there is one");
      if (found[i]) expect(found_keys[i] == at->first && values[i] == at->second, "lower_bound of a batch");
    }
  }

  void check_all() {
    const std::string problem = index.validate();
    expect(problem.empty(), "validate: " + problem);
    expect(index.size() == static_cast<int64_t>(map.size()), "size");
    auto at = map.begin();
    for (const auto& [key, value] : index.entries()) {
      expect(at != map.end() && key == at->first && value == at->second, "entries");
      ++at;
    }
    expect(at == map.end(), "all entries are there");
  }
};

}  // namespace anabranch::testing
