// What an index looks like in memory: the one description that the CPU, CUDA, torch and the file on disk share.
//
// An index is two arrays of 64-bit words. `nodes` holds nodes of `node_words` words each, named by their number: 0 is
// no node, 1 is the root for ever. `control` holds what belongs to the whole. A zeroed pair with a header in `control`
// is an empty index. No word is a pointer, so the arrays may be copied, shared between processes, mapped at another
// address or moved to a GPU.
//
// A node (8 words of header, one cache line, then columns):
//
//   word 0     lock: version, readers, writer (version_lock.hpp)
//   word 1     int32 count, int32 level (0: leaf)
//   word 2     uint32 next: the right neighbour on this level, or 0
//   word 3, 4  high: the first key that the right neighbour may hold; only where next is not 0
//   word 5..7  pivots, in nodes of one-word keys: the keys at part, 2 part and 3 part, or the greatest key there is; a
//              batch fetches only the part that they lead it to. They are hints: whoever uses them looks at the keys,
//              so that a writer which leaves them as they were, as those on a GPU do, costs time and nothing else
//   word 8...  leaf:  key_words columns of leaf_capacity keys, then leaf_capacity values
//              inner: key_words columns of inner_capacity keys, then inner_capacity uint32 children
//
// Keys of a node ascend. Entry i of an inner node leads to the node of the level below whose keys are at least key i;
// the first key of the leftmost node of each level above the leaves is the least key there is, so a search always finds
// an entry. Every node is reachable from its left neighbour, whether the level above names it or not.
#pragma once

#include <cstdint>

namespace anabranch {

#if defined(__CUDACC__)
#define ANABRANCH_INDEX_FUNCTION __host__ __device__ constexpr
#else
#define ANABRANCH_INDEX_FUNCTION constexpr
#endif

/// A leaf of 60 keys of one word is as large as four lines of the slowest prefetch group and as two stops of a scan;
/// see docs/bskiplist.md for the measurements that chose it. Programs that use the headers alone may define another
/// size: a multiple of 8 from 32 on. Libraries, files and tensors all have this one.
#if !defined(ANABRANCH_INDEX_NODE_WORDS)
#define ANABRANCH_INDEX_NODE_WORDS 128
#endif
inline constexpr int index_node_words = ANABRANCH_INDEX_NODE_WORDS;
inline constexpr int index_node_header_words = 8;

template <int key_words>
struct IndexNode {
  static_assert(key_words == 1 || key_words == 2);
  static_assert(index_node_words % 8 == 0 && index_node_words >= 32);
  static constexpr int words = index_node_words;
  static constexpr int column_words = words - index_node_header_words;
  static constexpr int leaf_capacity = column_words / (key_words + 1);
  static constexpr int inner_capacity = 2 * column_words / (2 * key_words + 1) / 2 * 2;

  static constexpr int lock = 0, shape = 1, next = 2, high = 3, pivots = 5, columns = index_node_header_words;
  static constexpr int num_pivots = 3;

  /// The word at which a column of keys begins.
  ANABRANCH_INDEX_FUNCTION static int keys(bool leaf, int column) {
    return columns + column * (leaf ? leaf_capacity : inner_capacity);
  }
  /// The word at which the values, or the children, begin.
  ANABRANCH_INDEX_FUNCTION static int payload(bool leaf) { return keys(leaf, key_words); }
  ANABRANCH_INDEX_FUNCTION static int capacity(bool leaf) { return leaf ? leaf_capacity : inner_capacity; }
  /// Keys between two pivots: whole cache lines of them.
  ANABRANCH_INDEX_FUNCTION static int part(bool leaf) {
    return (capacity(leaf) + 8 * (num_pivots + 1) - 1) / (8 * (num_pivots + 1)) * 8;
  }
};

inline constexpr uint32_t index_root = 1;
/// More levels than 2^32 nodes can have, half full.
inline constexpr int index_max_levels = 10;

/// Words of `control`. What writers change lies a cache line apart from what readers read.
struct IndexControl {
  static constexpr int64_t magic = 0x31786469'72626e61;  // "anbridx1"
  static constexpr int format = 0;                       // magic
  static constexpr int key_words = 1;                    // 1 or 2
  static constexpr int node_words = 2;                   // index_node_words
  static constexpr int capacity = 3;                     // nodes there is memory for
  static constexpr int used = 8;                         // nodes that were ever taken, the two first included
  static constexpr int free_head = 16;  // the last node given back, below a counter that makes each head unique
  static constexpr int gate = 24;       // how many ask writers to wait (arena.hpp)
  static constexpr int slots = 32;      // num_slots lines: writers within, and the size they leave behind
  static constexpr int num_slots = 16, slot_words = 8;
  static constexpr int words = slots + num_slots * slot_words;
  /// A slot is the writers that are within (16 bits) and above them what this slot adds to the size.
  static constexpr int64_t size_unit = int64_t{1} << 16;
  /// What the gate counts for those who ask readers that lock to wait, too.
  static constexpr int64_t readers_unit = int64_t{1} << 12;
};

/// What a batch that writes says of each key.
enum class IndexStatus : uint8_t {
  unchanged,  // insert: the key was there already; erase: it was not
  changed,    // inserted or erased
  refused     // there was no memory for another node; the index is as if this key had not been in the batch
};

}  // namespace anabranch
