// How the nodes of an index split, even out and merge, under locks that the caller has or that are taken here.
//
// Locks are taken top-down and from left to right. What would go against that order is tried and not waited for: the
// parent of a locked leaf, a left neighbour. At most a node, its parent and one neighbour are locked at once.
#pragma once

#include <limits>

#include "anabranch/index/node.hpp"

namespace anabranch::index_detail {

/// What a writer's step came to.
enum class Outcome { yes, no, again, full };

template <CpuIsa isa, int key_words>
struct Rebalance {
  using Node = index_detail::Node<isa, key_words>;
  using Layout = IndexNode<key_words>;
  using Key = IndexKey<key_words>;

  /// A node and the version at which it was entered.
  struct Place {
    Node node;
    uint64_t version = 0;
    [[gnu::always_inline]] bool unchanged() const { return VersionLock::unchanged(node.lock(), version); }
    [[gnu::always_inline]] bool upgrade() const { return VersionLock::try_upgrade(node.lock(), version); }
  };

  IndexArena arena;

  [[gnu::always_inline]] Node node(uint32_t id) const { return Node(arena, id); }
  [[gnu::always_inline]] bool exists(uint32_t id) const {
    return id != 0 && static_cast<int64_t>(id) < arena.capacity();
  }

  /// A node with so few entries is merged.
  static constexpr int sparse(bool leaf) { return Layout::capacity(leaf) / 4; }

  /// Names a node that so far only its left neighbour leads to, in the parent of that one: whoever walked past goes
  /// down next time. Only where the parent has room and nobody is in the way. Its keys begin at `border`.
  [[gnu::noinline]] void name(const Place& parent, const Key& border, uint32_t id) const {
    const Node above = parent.node;
    if (above.id == 0 || above.count() == Layout::inner_capacity || above.is_before(border) || !parent.upgrade())
      return;
    above.insert_child(above.entry_of(border) + 1, border, id);
    above.release();
  }

  /// Splits a full inner node on the way down; its parent has room, because the way led through it, unless memory ended
  /// there. The search then begins again. full: nothing has changed, and the search may go on.
  [[gnu::noinline]] Outcome make_room(const Place& parent, const Place& place) const {
    const bool named = parent.node.id != 0;
    if (named && !parent.upgrade()) return Outcome::again;
    if (!place.upgrade()) {
      if (named) VersionLock::unlock_unchanged(parent.node.lock());
      return Outcome::again;
    }
    bool done;
    if (place.node.id == index_root) {
      done = grow_root(place.node);
    } else {
      const bool nameable = !named || parent.node.count() < Layout::inner_capacity;
      const uint32_t fresh = nameable ? arena.take_node() : 0;
      done = fresh != 0;
      if (done) {
        const Node right = node(fresh);
        split_at(place.node, right, place.node.count() / 2);
        const Key border = right.key(false, 0);
        if (named) parent.node.insert_child(parent.node.entry_of(border) + 1, border, fresh);
      }
    }
    if (!done) {
      VersionLock::unlock_unchanged(place.node.lock());
      if (named) VersionLock::unlock_unchanged(parent.node.lock());
      return Outcome::full;
    }
    place.node.release();
    if (named) parent.node.release();
    return Outcome::again;
  }

  /// The root keeps its number: what it held becomes two nodes a level below it. false: no memory, nothing changed.
  bool grow_root(const Node& root) const {
    const uint32_t first = arena.take_node();
    const uint32_t second = first ? arena.take_node() : 0;
    if (second == 0) {
      if (first) arena.give_back_node(first);
      return false;
    }
    const Node left = node(first), right = node(second);
    const int count = root.count(), level = root.level();
    left.set_level(level);
    left.take(root, 0, count, 0);
    left.set_count(count);
    left.set_next(0);
    split_at(left, right, count / 2);
    left.set_pivots();
    Key least;
    least.fill(std::numeric_limits<int64_t>::min());
    const Key border = left.high();
    root.set_level(level + 1);
    root.set_key(false, 0, least);
    root.set_child(0, first);
    root.set_key(false, 1, border);
    root.set_child(1, second);
    root.set_count(2);
    return true;
  }

  /// On the way down to erase: whether the tree has become another one.
  [[gnu::noinline]] bool shrink(const Place& parent, const Place& place, const Key& key) const {
    if (place.node.id == index_root) return shrink_root(place);
    if (parent.node.id == 0 || !parent.upgrade()) return false;
    if (!place.upgrade()) {
      VersionLock::unlock_unchanged(parent.node.lock());
      return false;
    }
    return merge_with_neighbour(parent.node, place.node, key) == Outcome::yes;
  }

  static bool is_sparse(const Node& node) {
    return node.id == index_root ? node.count() == 1 : node.count() <= sparse(false);
  }

  /// A full leaf gives entries to a neighbour that has room for enough of them; returns that one, locked, or none.
  Node even_out_with_neighbour(const Node& parent, const Node& leaf, const Key& key) const {
    for (const bool to_right : {true, false}) {
      Pair pair;
      const Node other = lock_neighbour(parent, leaf, key, to_right, pair);
      if (other.id == 0) continue;
      if (other.count() <= Layout::leaf_capacity - room_worth_moving) {
        even_out(parent, pair);
        return other;
      }
      VersionLock::unlock_unchanged(other.lock());
    }
    return {};
  }

  /// Merges a sparse node with a neighbour, or evens the two out; unlocks all. yes: done; no: it has no neighbour under
  /// this parent; again: someone else has the neighbour.
  Outcome merge_with_neighbour(const Node& parent, const Node& at, const Key& key) const {
    Pair pair;
    Node other = lock_neighbour(parent, at, key, true, pair);
    if (other.id == 0) other = lock_neighbour(parent, at, key, false, pair);
    if (other.id == 0) {
      const bool alone = parent.count() == 1;
      VersionLock::unlock_unchanged(parent.lock());
      if (at.level() > 0) {
        VersionLock::unlock_unchanged(at.lock());  // whoever came to merge it goes on from it
      } else {
        at.release();
      }
      return alone ? Outcome::no : Outcome::again;
    }
    const auto& [left, right, entry] = pair;
    const int a = left.count(), b = right.count();
    const bool merge = a + b <= at.capacity() * 3 / 4;
    if (merge) {
      left.take(right, 0, b, a);
      left.set_count(a + b);
      left.set_next(right.next());
      left.set_high(right.high());
      parent.erase(entry);
    } else {
      even_out(parent, pair);
    }
    parent.release();
    left.release();
    right.release();
    if (merge) arena.give_back_node(right.id);
    return Outcome::yes;
  }

  /// Splits a full leaf in two locked halves; where the key comes first or last it gets a leaf to itself, so that keys
  /// in order leave full leaves behind. Returns the border.
  static Key split_for(const Key& key, const Node& leaf, const Node& right) {
    const int position = leaf.lower_bound(key), count = leaf.count();
    const int at = position == count ? count : position == 0 ? 0 : count / 2;
    split_at(leaf, right, at);
    if (at == count) leaf.set_high(key);
    return leaf.high();
  }

 private:
  /// The root's only child becomes the root, unless it has a neighbour that the root does not name.
  bool shrink_root(const Place& root) const {
    if (!exists(root.node.child(0)) || root.node.child(0) == root.node.id || !root.upgrade()) return false;
    const Node child = node(root.node.child(0));
    VersionLock::lock(child.lock());
    if (child.next() != 0) {
      VersionLock::unlock_unchanged(child.lock());
      VersionLock::unlock_unchanged(root.node.lock());
      return false;
    }
    const int count = child.count();
    root.node.set_level(child.level());
    root.node.take(child, 0, count, 0);
    root.node.set_count(count);
    root.node.release();
    child.release();
    arena.give_back_node(child.id);
    return true;
  }

  /// Two neighbours under one parent, both locked; `entry` is the right one's.
  struct Pair {
    Node left, right;
    int entry = 0;
  };

  /// Parent and node are locked, and `key` leads from the one to the other. Locks the neighbour on the asked side; 0 as
  /// its number where there is none, or, to the left, where someone else has it: locks are waited for from left to
  /// right.
  Node lock_neighbour(const Node& parent, const Node& at, const Key& key, bool to_right, Pair& pair) const {
    const int entry = parent.entry_of(key);
    if (parent.child(entry) != at.id || (to_right ? entry + 1 >= parent.count() : entry == 0)) return {};
    const uint32_t neighbour = parent.child(to_right ? entry + 1 : entry - 1);
    if (!exists(neighbour) || neighbour == at.id || neighbour == parent.id) return {};
    const Node other = node(neighbour);
    if (to_right) {
      VersionLock::lock(other.lock());
    } else if (!VersionLock::try_lock(other.lock())) {
      return {};
    }
    pair = to_right ? Pair{at, other, entry + 1} : Pair{other, at, entry};
    if (pair.left.next() == pair.right.id) return other;
    VersionLock::unlock_unchanged(other.lock());  // a node that no parent names lies between
    return {};
  }

  /// Makes the two as full as each other.
  static void even_out(const Node& parent, const Pair& pair) {
    const auto& [left, right, entry] = pair;
    const int a = left.count(), b = right.count(), target = (a + b) / 2;
    if (target < a) {
      right.shift(0, a - target);
      right.take(left, target, a - target, 0);
      left.set_count(target);
    } else if (target > a) {
      left.take(right, 0, target - a, a);
      left.set_count(target);
      right.shift(target - a, a - target);
    }
    const Key border = right.key(right.level() == 0, 0);
    left.set_high(border);
    parent.set_key(false, entry, border);
  }

  /// Entries from `at` on go to `right`, which becomes the right neighbour. With none to go the caller sets the border.
  static void split_at(const Node& node, const Node& right, int at) {
    const int count = node.count(), level = node.level();
    right.set_level(level);
    right.take(node, at, count - at, 0);
    right.set_count(count - at);
    right.set_pivots();
    right.set_next(node.next());
    right.set_high(node.high());
    if (at < count) node.set_high(right.key(level == 0, 0));
    node.set_next(right.id);
    node.set_count(at);
  }

  /// Entries a neighbour must have room for before a leaf bothers it instead of splitting. With one alone the two would
  /// be full and one short of it, and the key might be for the full one.
  static constexpr int room_worth_moving = std::max(2, Layout::leaf_capacity / 6);
};

}  // namespace anabranch::index_detail
