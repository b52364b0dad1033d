// Several operations on one leaf under one lock: what batches that write are made of.
//
// Moving half a leaf for each key is all that is left of its cost; the way down, the lock and the trips to memory are
// shared.
#pragma once

#include "anabranch/index/tree.hpp"

namespace anabranch::index_detail {

template <CpuIsa isa, int key_words>
struct LeafRun {
  using Tree = index_detail::Tree<isa, key_words>;
  using Layout = IndexNode<key_words>;
  using Key = IndexKey<key_words>;
  using Descent = typename Tree::Descent;

  /// Inserts keys that ascend, `get(i)` the i-th, as far as they belong to one leaf. done(i, outcome) hears of each.
  /// Returns how many are done, at least one.
  template <class Get, class Value, class Done>
  static int64_t insert(const Tree& tree, IndexWriter& writer, int64_t n, bool assign, Get&& get, Value&& value,
                        Done&& done) {
    Descent at = tree.lock_leaf(get(0), false);
    if (at.outcome != Outcome::yes) {
      done(0, tree.insert_as(writer, get(0), value(0), assign));
      return 1;
    }
    int64_t inserted = 0, i = 0;
    bool changed = false;
    for (; i < n && !(i > 0 && at.leaf.is_before(get(i))); ++i) {
      const Key key = get(i);
      int position = at.leaf.lower_bound(key);
      if (at.leaf.holds(position, key)) {
        if (assign) at.leaf.set_value(position, value(i));
        changed = changed || assign;
        done(i, Outcome::no);
        continue;
      }
      if (at.leaf.count() == Layout::leaf_capacity) {
        if (i > 0) break;  // the next run begins with this key, and readers hear of what has changed before it splits
        at = tree.make_room_in_leaf(at, key);
        if (at.outcome != Outcome::yes) {
          done(0, at.outcome == Outcome::full ? Outcome::full : tree.insert_as(writer, key, value(0), assign));
          return 1;
        }
        position = at.leaf.lower_bound(key);
      }
      at.leaf.insert(position, key, value(i));
      changed = true;
      ++inserted;
      done(i, Outcome::yes);
    }
    if (changed) {
      at.leaf.release();
    } else {
      VersionLock::unlock_unchanged(at.leaf.lock());
    }
    writer.add_to_size(inserted);
    return i;
  }

  /// Erases keys that ascend, likewise.
  template <class Get, class Done>
  static int64_t erase(const Tree& tree, IndexWriter& writer, int64_t n, Get&& get, Done&& done) {
    const Descent at = tree.lock_leaf(get(0), true);
    if (at.outcome != Outcome::yes) {
      uint64_t value;
      done(0, tree.erase_as(writer, get(0), value) ? Outcome::yes : Outcome::no);
      return 1;
    }
    int64_t erased = 0, i = 0;
    for (; i < n && !(i > 0 && at.leaf.is_before(get(i))); ++i) {
      const Key key = get(i);
      const int position = at.leaf.lower_bound(key);
      const bool here = at.leaf.holds(position, key);
      if (here) at.leaf.erase(position);
      erased += here;
      done(i, here ? Outcome::yes : Outcome::no);
    }
    if (erased == 0) {
      VersionLock::unlock_unchanged(at.leaf.lock());
    } else if (!tree.settle_leaf(at, get(0))) [[unlikely]] {
      tree.remove_empty_leaf(get(0));
    }
    writer.add_to_size(-erased);
    return i;
  }
};

}  // namespace anabranch::index_detail
