// An index on the GPU: a node seen by a group of threads, and the way down to it.
//
// A group is 16 lanes of a warp (template: 8, 16 or 32). One step of 16 lanes reads 128 bytes of keys, what an L2 line
// holds, so a leaf of 60 keys takes four loads that are all under way at once, and a warp has two queries to wait for
// instead of one; with 8 lanes the loads of a node fill twice the registers, with 32 the second
// step of a leaf that is two thirds full is almost empty. All lanes of a group hold the same header and come to the
// same answers; groups of one warp may part.
//
// A search of a tree with L levels touches, per level, the 64-byte line of the header and then, side by side, those of
// the keys that are in use: 1 + 8 key_words lines of a node that is full, 6 of a leaf that 40 random keys fill; then
// one line of values. The levels above the leaves stay in L2. Floor of a batch of finds: 7 lines of 64 bytes a query.
//
// One operation at a time on the device: any number of queries run within one find, lower_bound, range_count or
// gather, and any number of keys within one insert or erase, but nothing else may touch the index meanwhile; torch's
// stream order sees to that on one stream. So these kernels take no locks and leave the lock bits 0; a node that is
// rewritten or given back gets another version, as VersionLock::unlock would give it.
//
// Memory that is no index does no harm: numbers of nodes and counts are bounded before they are used, ways end after as
// many steps as there are nodes, and with another header nothing is found and nothing is inserted.
#pragma once

#include "anabranch/core/simt.cuh"
#include "anabranch/index/layout.hpp"
#include "anabranch/index/version_lock.hpp"

namespace anabranch {

/// The two tensors of an index; `capacity` is the number of rows of `nodes`.
struct IndexArrays {
  int64_t* control;
  int64_t* nodes;
  int64_t capacity;
};

namespace detail {

inline constexpr int kIndexLanes = 16;
inline constexpr int kIndexThreads = 128;
/// Blocks per SM that kernels with many registers ask for: left to itself, ptxas spills for more.
inline constexpr int kIndexBlocksPerSm = 5;
/// Blocks that fill any GPU; more work than they have threads is shared out in turns.
inline constexpr int64_t kIndexBlocks = 4096;

/// `n` pieces of work for groups of `lanes` threads each; 1 for work that a thread does alone.
inline unsigned index_grid(int64_t n, int lanes) {
  const int64_t per_block = kIndexThreads / lanes, blocks = (n + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < kIndexBlocks ? blocks : kIndexBlocks);
}

template <int lanes>
struct LaneGroup {
  static_assert(lanes == 8 || lanes == 16 || lanes == 32);
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % lanes; }
  __device__ static unsigned mask() {
    return (kAllLanes >> (32 - lanes)) << (static_cast<int>(threadIdx.x) % 32 / lanes * lanes);
  }
  /// How many lanes say yes.
  __device__ static int count(bool yes) { return __popc(__ballot_sync(mask(), yes)); }
  /// What lanes wrote before is there for all lanes after.
  __device__ static void sync() { __syncwarp(mask()); }
  /// The group's number in the grid, and how many there are.
  __device__ static int64_t first() { return (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / lanes; }
  __device__ static int64_t stride() { return static_cast<int64_t>(gridDim.x) * blockDim.x / lanes; }
};

template <int key_words>
struct DeviceKey {
  int64_t words[key_words];

  /// Key i of a batch.
  __device__ static DeviceKey at(const int64_t* keys, int64_t i) {
    DeviceKey key;
    for (int w = 0; w < key_words; ++w) key.words[w] = keys[i * key_words + w];
    return key;
  }
  __device__ static DeviceKey least() {
    DeviceKey key;
    for (int w = 0; w < key_words; ++w) key.words[w] = static_cast<int64_t>(uint64_t{1} << 63);
    return key;
  }
  __device__ void store(int64_t* keys, int64_t i) const {
    for (int w = 0; w < key_words; ++w) keys[i * key_words + w] = words[w];
  }
  __device__ bool is(const DeviceKey& other) const {
    return words[0] == other.words[0] && words[key_words - 1] == other.words[key_words - 1];
  }
  __device__ bool less(const DeviceKey& other) const {
    if constexpr (key_words == 2) {
      if (words[0] == other.words[0]) return words[1] < other.words[1];
    }
    return words[0] < other.words[0];
  }
};

/// A node whose header every lane of a group has read. Counts are those of then.
template <int key_words, int lanes>
struct GroupNode {
  using Layout = IndexNode<key_words>;
  using Key = DeviceKey<key_words>;
  using Group = LaneGroup<lanes>;

  int64_t* words = nullptr;
  uint32_t id = 0;  // 0: there is no such node
  int count = 0, level = 0;
  uint32_t next = 0;
  Key high{};

  GroupNode() = default;
  __device__ GroupNode(const IndexArrays& index, uint32_t number) {
    if (number == 0 || number >= index.capacity) return;
    id = number;
    words = index.nodes + static_cast<int64_t>(id) * Layout::words;
    const int64_t shape = words[Layout::shape];
    next = static_cast<uint32_t>(words[Layout::next]);
    high = Key::at(words + Layout::high, 0);
    level = static_cast<int>(shape >> 32);
    const auto entries = static_cast<uint32_t>(shape);
    const auto most = static_cast<uint32_t>(Layout::capacity(level == 0));
    count = static_cast<int>(entries < most ? entries : most);
  }

  __device__ bool is_leaf() const { return level == 0; }
  __device__ bool is_before(const Key& key) const { return next != 0 && !key.less(high); }

  __device__ Key key(int i) const {
    Key key;
    for (int w = 0; w < key_words; ++w) key.words[w] = words[Layout::keys(is_leaf(), w) + i];
    return key;
  }
  __device__ int64_t value(int i) const { return words[Layout::payload(true) + i]; }
  __device__ uint32_t child(int i) const {
    return reinterpret_cast<const uint32_t*>(words + Layout::payload(false))[i];
  }
  __device__ int64_t payload(int i) const { return is_leaf() ? value(i) : child(i); }

  __device__ void set_entry(int i, const Key& key, int64_t payload) const {
    for (int w = 0; w < key_words; ++w) words[Layout::keys(is_leaf(), w) + i] = key.words[w];
    if (is_leaf()) {
      words[Layout::payload(true) + i] = payload;
    } else {
      reinterpret_cast<uint32_t*>(words + Layout::payload(false))[i] = static_cast<uint32_t>(payload);
    }
  }
  /// Writes what this object says of the node, under a new version; by one lane.
  __device__ void store_header() const {
    using Lock = index_detail::VersionLock;
    const auto lock = static_cast<uint64_t>(words[Layout::lock]);
    words[Layout::lock] = static_cast<int64_t>((lock & Lock::version_mask) + Lock::version_unit);
    words[Layout::shape] = static_cast<int64_t>(level) << 32 | count;
    words[Layout::next] = next;
    high.store(words + Layout::high, 0);
  }

  /// How many keys are less than `key`, or, where `or_equal`, not above it. All lanes of the group call this.
  template <bool or_equal>
  __device__ int count_before(const Key& key) const {
    constexpr int most =
        Layout::leaf_capacity > Layout::inner_capacity ? Layout::leaf_capacity : Layout::inner_capacity;
    constexpr int steps = (most + lanes - 1) / lanes;
    Key seen[steps];  // all loads are under way before the first one is waited for
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int i = step * lanes + Group::lane();
      if (i < count) seen[step] = this->key(i);
    }
    int before = 0;
#pragma unroll
    for (int step = 0; step < steps; ++step) {
      const int i = step * lanes + Group::lane();
      before += Group::count(i < count && (or_equal ? !key.less(seen[step]) : seen[step].less(key)));
    }
    return before;
  }
  /// The entry of an inner node that leads to `key`.
  __device__ int entry_of(const Key& key) const {
    const int before = count_before<true>(key);
    return before > 0 ? before - 1 : 0;
  }
};

template <int key_words>
__device__ bool is_index(const IndexArrays& index) {
  return index.capacity > index_root && index.control[IndexControl::format] == IndexControl::magic &&
         index.control[IndexControl::key_words] == key_words &&
         index.control[IndexControl::node_words] == index_node_words &&
         index.control[IndexControl::capacity] == index.capacity;
}

/// The node of `level` that `key` is for; without an id where there is none. All lanes of the group call this.
template <int key_words, int lanes>
__device__ GroupNode<key_words, lanes> find_node(const IndexArrays& index, const DeviceKey<key_words>& key, int level) {
  using Node = GroupNode<key_words, lanes>;
  if (!is_index<key_words>(index)) return Node();
  Node node(index, index_root);
  for (int64_t steps = index.capacity; steps > 0 && node.id != 0; --steps) {
    if (node.is_before(key)) {
      node = Node(index, node.next);
    } else if (node.level <= level) {
      return node.level == level ? node : Node();
    } else {
      node = Node(index, node.child(node.entry_of(key)));
    }
  }
  return Node();
}

}  // namespace detail

}  // namespace anabranch
