// Writing to the B-skiplist: point operations on an arena, safe from any number of threads and processes at once.
//
// Writers go top-down once, hand over hand, and hold at most a node, its parent and one neighbour: an inner node
// without room for one more entry is split on the way down, so a leaf that splits always finds room above it. Which key
// is promoted is decided by overflow, not by a coin (deterministic skip lists: Munro, Papadakis and Sedgewick, SODA
// 1992; blocks: Luo et al., arXiv 2507.21492): a coin leaves gaps of geometric length, 36 % of the memory filled and
// one search in eight going sideways, and any fixed coin has keys for which it never falls.
#pragma once

#include "anabranch/index/tree_search.hpp"

namespace anabranch::index_detail {

/// Writers begin again when others were in their way, far less often than this: only damaged links lead nowhere for
/// ever.
inline constexpr int64_t writer_attempts = int64_t{1} << 20;

template <CpuIsa isa, int key_words>
struct Tree : TreeSearch<isa, key_words> {
  using Base = TreeSearch<isa, key_words>;
  using Base::arena;
  using Base::enter;
  using Base::exists;
  using Base::node;
  using Base::toward;
  using typename Base::Key;
  using typename Base::Layout;
  using typename Base::Node;
  using typename Base::Place;

  /// yes: inserted; no: the key was there, and has the value now if `assign`; full: there is no memory for another
  /// node, and nothing has changed.
  Outcome insert(const Key& key, uint64_t value, bool assign) const {
    IndexWriter writer(arena);
    return insert_as(writer, key, value, assign);
  }

  /// The same for a thread that is a writer already.
  Outcome insert_as(IndexWriter& writer, const Key& key, uint64_t value, bool assign) const {
    Spin spin;
    for (int64_t attempt = 0; attempt < writer_attempts; ++attempt, spin.wait()) {
      const Outcome outcome = try_insert(key, value, assign);
      if (outcome == Outcome::yes) writer.add_to_size(1);
      if (outcome != Outcome::again) return outcome;
    }
    return Outcome::full;
  }

  /// Whether the key was there, and then the value it had.
  bool erase(const Key& key, uint64_t& value) const {
    IndexWriter writer(arena);
    return erase_as(writer, key, value);
  }

  bool erase_as(IndexWriter& writer, const Key& key, uint64_t& value) const {
    Spin spin;
    for (int64_t attempt = 0; attempt < writer_attempts; ++attempt, spin.wait()) {
      const Outcome outcome = try_erase(key, value);
      if (outcome == Outcome::yes) writer.add_to_size(-1);
      if (outcome != Outcome::again) return outcome == Outcome::yes;
    }
    return false;
  }

  /// A leaf that this thread has locked, and the parent it came from; `parent.node.id` is 0 where none names it.
  struct Descent {
    Place parent;
    Node leaf;
    Outcome outcome = Outcome::again;  // yes, again; full where links are damaged
  };

  /// Locks the leaf for `key`, having made room in each inner node on the way for one more entry as far as there is
  /// memory for it, or, where `shrinking`, having merged those that are nearly empty.
  [[gnu::always_inline]] Descent lock_leaf(const Key& key, bool shrinking) const {
    Descent at;
    Place place = enter(node(index_root));
    bool sideways = false;
    for (int64_t steps = 0; place.node.level() > 0; ++steps) {
      // Nodes that others split and use again meanwhile can make it a few more.
      if (steps > arena.capacity() + 1024) return damaged(at);
      if (place.node.is_before(key)) [[unlikely]] {
        sideways = true;
      } else if (shrinking ? Base::is_sparse(place.node) : place.node.count() == Layout::inner_capacity) [[unlikely]] {
        if (shrinking) {
          // Merging is worth a try and not a wait: whoever comes next will try again.
          if (!sideways && this->shrink(at.parent, place, key)) return at;
        } else if (this->make_room(sideways ? Place{} : at.parent, place) != Outcome::full) {
          return at;
        }
        // Without memory to split it goes on all the same: the leaf may have the key, or room.
      }
      const uint32_t next = toward(place.node, key);
      if (!exists(next) || next == place.node.id) return place.unchanged() ? damaged(at) : at;
      const bool down = !place.node.is_before(key);
      const Node below = node(next);
      if (down && place.node.level() == 1) {
        below.prefetch_to_write();
        VersionLock::lock(below.lock());
        const bool current = place.unchanged();
        if (!current || below.level() != 0) {
          VersionLock::unlock_unchanged(below.lock());
          return current ? damaged(at) : at;
        }
        at.parent = place;
        return settle(at, below, key);
      }
      below.prefetch(place.node.level() - 1);
      const Place then = enter(below);
      const Key border = place.node.high();
      if (!place.unchanged()) return at;
      if (down) {
        at.parent = place;
        sideways = false;
      } else {
        this->name(at.parent, border, next);
      }
      place = then;
    }
    if (place.node.id != index_root) return place.unchanged() ? damaged(at) : at;
    VersionLock::lock(place.node.lock());
    if (place.node.level() != 0) {
      VersionLock::unlock_unchanged(place.node.lock());
      return at;
    }
    at.parent = Place{};
    return settle(at, place.node, key);
  }

  /// Makes room for `key` in a full leaf: moves entries to a neighbour that has some, or splits it. The leaf that is
  /// returned is the one for the key, and locked. Where the outcome is not yes, nothing is locked.
  [[gnu::noinline]] Descent make_room_in_leaf(Descent at, const Key& key) const {
    if (at.leaf.id == index_root) {
      at.outcome = this->grow_root(at.leaf) ? Outcome::again : Outcome::full;
      at.leaf.release();
      return at;
    }
    const bool named = at.parent.node.id != 0;
    if (named && !at.parent.upgrade()) {
      VersionLock::unlock_unchanged(at.leaf.lock());
      at.outcome = Outcome::again;
      return at;
    }
    const Node parent = at.parent.node;
    Node other = named ? this->even_out_with_neighbour(parent, at.leaf, key) : Node{};
    if (other.id == 0) {
      // A parent is full here where memory ended on the way down.
      const bool nameable = !named || parent.count() < Layout::inner_capacity;
      const uint32_t fresh = nameable ? arena.take_node() : 0;
      // A node that is in use is free only in damaged memory; this thread has locked it.
      if (fresh == 0 || fresh == at.leaf.id || fresh == parent.id) {
        if (named) VersionLock::unlock_unchanged(parent.lock());
        VersionLock::unlock_unchanged(at.leaf.lock());
        at.outcome = Outcome::full;
        return at;
      }
      other = node(fresh);
      VersionLock::lock(other.lock());
      const Key border = Base::split_for(key, at.leaf, other);
      if (named) parent.insert_child(parent.entry_of(border) + 1, border, other.id);
    }
    if (named) parent.release();
    return keep_one(at, other, key);
  }

  /// After `key` has gone from a locked leaf: unlocks it, having merged it with a neighbour where it is nearly empty.
  /// false: it is empty and others were in the way.
  bool settle_leaf(const Descent& at, const Key& key) const {
    const int count = at.leaf.count();
    const Node parent = at.parent.node;
    if (count > Base::sparse(true) || at.leaf.id == index_root || parent.id == 0) {
      at.leaf.release();
      return true;
    }
    if (!at.parent.upgrade()) {
      at.leaf.release();
      return count > 0;
    }
    const Outcome outcome = this->merge_with_neighbour(parent, at.leaf, key);
    return outcome != Outcome::again || count > 0;
  }

  /// An empty leaf costs memory until someone erases beside it, so it is worth a few more tries.
  [[gnu::noinline]] void remove_empty_leaf(const Key& key) const {
    Spin spin;
    for (int attempt = 0; attempt < optimistic_attempts; ++attempt, spin.wait()) {
      const Descent at = lock_leaf(key, true);
      if (at.outcome == Outcome::yes && settle_leaf(at, key)) return;
    }
  }

 private:
  [[gnu::always_inline]] Outcome try_insert(const Key& key, uint64_t value, bool assign) const {
    Descent at = lock_leaf(key, false);
    if (at.outcome != Outcome::yes) return at.outcome;
    int i = at.leaf.lower_bound(key);
    if (at.leaf.holds(i, key)) {
      if (assign) {
        at.leaf.set_value(i, value);
        VersionLock::unlock(at.leaf.lock());
      } else {
        VersionLock::unlock_unchanged(at.leaf.lock());
      }
      return Outcome::no;
    }
    if (at.leaf.count() == Layout::leaf_capacity) [[unlikely]] {
      at = make_room_in_leaf(at, key);
      if (at.outcome != Outcome::yes) return at.outcome;
      i = at.leaf.lower_bound(key);
    }
    at.leaf.insert(i, key, value);
    at.leaf.release();
    return Outcome::yes;
  }

  [[gnu::always_inline]] Outcome try_erase(const Key& key, uint64_t& value) const {
    const Descent at = lock_leaf(key, true);
    if (at.outcome != Outcome::yes) return at.outcome;
    const int i = at.leaf.lower_bound(key);
    if (!at.leaf.holds(i, key)) {
      VersionLock::unlock_unchanged(at.leaf.lock());
      return Outcome::no;
    }
    value = at.leaf.value(i);
    at.leaf.erase(i);
    if (!settle_leaf(at, key)) [[unlikely]]
      remove_empty_leaf(key);
    return Outcome::yes;
  }

  /// Trying again would lead to the same: the key has no place.
  static Descent damaged(Descent at) {
    at.outcome = Outcome::full;
    return at;
  }

  /// Goes right from a locked leaf while the key lies past it.
  [[gnu::always_inline]] Descent settle(Descent at, Node leaf, const Key& key) const {
    while (leaf.is_before(key)) [[unlikely]] {
      const Key border = leaf.high();
      bool sound = exists(leaf.next()) && leaf.next() != leaf.id;
      if (sound) {
        const Node right = node(leaf.next());
        VersionLock::lock(right.lock());
        VersionLock::unlock_unchanged(leaf.lock());
        leaf = right;
        sound = leaf.level() == 0 && (leaf.next() == 0 || border < leaf.high());
      }
      if (!sound) {
        VersionLock::unlock_unchanged(leaf.lock());
        return damaged(at);
      }
      this->name(at.parent, border, leaf.id);
      at.parent = Place{};  // it has changed, or does not name this leaf
    }
    at.leaf = leaf;
    at.outcome = Outcome::yes;
    return at;
  }

  /// Of two locked neighbours, keeps the one that `key` belongs to.
  [[gnu::always_inline]] Descent keep_one(Descent at, Node other, const Key& key) const {
    const bool other_is_left = other.next() == at.leaf.id;
    const Node left = other_is_left ? other : at.leaf, right = other_is_left ? at.leaf : other;
    const bool goes_right = left.is_before(key);
    at.leaf = goes_right ? right : left;
    (goes_right ? left : right).release();
    at.outcome = Outcome::yes;
    return at;
  }
};

}  // namespace anabranch::index_detail
