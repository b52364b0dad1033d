// The B-skiplist: point operations on an arena, safe from any number of threads and processes at once.
//
// A search starts at the root, the widest view of the topmost list, and at each level goes right while the key lies
// past the node, then down (toward()). Writers go top-down once, hand over hand, and hold at most a node, its parent
// and one neighbour: an inner node without room for one more entry is split on the way down, so a leaf that splits
// always finds room above it. Which key is promoted is decided by overflow, not by a coin (deterministic skip lists:
// Munro, Papadakis and Sedgewick, SODA 1992; blocks: Luo et al., arXiv 2507.21492): a coin leaves gaps of geometric
// length, 36 % of the memory filled and one search in eight going sideways, and any fixed coin has keys for which it
// never falls.
//
// Readers are optimistic: they note the version of a node, read, go on, and ask for the version again once they have
// that of the next node. After `optimistic_attempts` they lock shared, hand over hand, as in the paper.
//
// Costs of a search among n keys, cold: one inner node in the last cache, the header and the keys of one leaf in memory
// side by side, and one line of values.
#pragma once

#include <limits>

#include "anabranch/index/node.hpp"

namespace anabranch::index_detail {

enum class ReadMode { optimistic, shared };

inline constexpr int optimistic_attempts = 16;

/// Nodes on an optimistic way down: the levels, and some that no parent names yet.
inline constexpr int optimistic_steps = 4 * index_max_levels;

/// Writers begin again when others were in their way, far less often than this: only damaged links lead nowhere for
/// ever.
inline constexpr int64_t writer_attempts = int64_t{1} << 20;

/// What a writer's step came to.
enum class Outcome { yes, no, again, full };

template <CpuIsa isa, int key_words>
struct Tree {
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
  [[gnu::always_inline]] Place enter(Node node) const { return {node, VersionLock::begin_read(node.lock())}; }
  [[gnu::always_inline]] bool exists(uint32_t id) const {
    return id != 0 && static_cast<int64_t>(id) < arena.capacity();
  }

  /// Where a search for `key` goes from here: right, down, or nowhere (0) in the leaf that it is for.
  [[gnu::always_inline]] static uint32_t toward(const Node& node, const Key& key) {
    if (node.is_before(key)) [[unlikely]]
      return node.next();
    if (node.level() == 0) return 0;
    return node.child(node.entry_of(key));
  }

  /// Calls visit(leaf, version) in the leaf for `key`; what it saw counts if this returns true. Optimistic visits may
  /// see a leaf while it changes. `step(node, next)` hears of each node on the way.
  template <ReadMode mode, class Visit, class Step>
  [[gnu::always_inline]] bool try_read(const Key& key, Visit&& visit, Step&& step) const {
    if constexpr (mode == ReadMode::shared) {
      Node at = node(index_root);
      VersionLock::lock_shared(at.lock());
      int64_t steps = 0;
      for (uint32_t next; (next = toward(at, key)) != 0;) {
        if (!exists(next) || next == at.id || ++steps > arena.capacity() + index_max_levels) {
          VersionLock::unlock_shared(at.lock());
          return false;
        }
        step(at, next);
        const Node below = node(next);
        VersionLock::lock_shared(below.lock());
        VersionLock::unlock_shared(at.lock());
        at = below;
      }
      visit(at, 0);
      VersionLock::unlock_shared(at.lock());
      return true;
    } else {
      Place at = enter(node(index_root));
      int steps = 0;
      while (const uint32_t next = toward(at.node, key)) {
        if (!exists(next) || ++steps > optimistic_steps) return false;
        const Node below = node(next);
        below.prefetch(at.node.level() - 1);
        step(at.node, next);
        const Place then = enter(below);
        if (!at.unchanged()) return false;
        at = then;
      }
      visit(at.node, at.version);
      return at.unchanged();
    }
  }

  /// Calls visit(leaf, version) until it has seen the leaf for `key` in one piece; the last call counts. false only
  /// where links are damaged.
  template <class Visit, class Step>
  [[gnu::always_inline]] bool read_leaf(const Key& key, Visit&& visit, Step&& step) const {
    for (int attempt = 0; attempt < optimistic_attempts; ++attempt) {
      if (try_read<ReadMode::optimistic>(key, visit, step)) return true;
    }
    return read_leaf_locked(key, visit, step);
  }

  template <class Visit>
  [[gnu::always_inline]] bool read_leaf(const Key& key, Visit&& visit) const {
    return read_leaf(key, visit, [](const Node&, uint32_t) {});
  }

  template <class Visit, class Step>
  [[gnu::noinline]] bool read_leaf_locked(const Key& key, Visit& visit, Step& step) const {
    const IndexWriter guest(arena, IndexWriter::Reads{});  // it holds locks, so a fork must wait for it
    return try_read<ReadMode::shared>(key, visit, step);
  }

  bool find(const Key& key, uint64_t& value) const {
    bool found = false;
    return read_leaf(key,
                     [&](const Node& leaf, uint64_t) {
                       const int i = leaf.lower_bound(key);
                       found = leaf.holds(i, key);
                       if (found) value = leaf.value(i);
                     }) &&
           found;
  }

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

  /// The same for several keys that ascend, `get(i)` the i-th, as far as they belong to one leaf: it is found and
  /// locked once. done(i, outcome) hears of each. Returns how many are done, at least one.
  template <class Get, class Value, class Done>
  int64_t insert_run(IndexWriter& writer, int64_t n, bool assign, Get&& get, Value&& value, Done&& done) const {
    Descent at = lock_leaf(get(0), false);
    if (at.outcome != Outcome::yes) {
      done(0, insert_as(writer, get(0), value(0), assign));
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
        at = make_room_in_leaf(at, key);
        if (at.outcome != Outcome::yes) {
          done(0, at.outcome == Outcome::full ? Outcome::full : insert_as(writer, key, value(0), assign));
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
      VersionLock::unlock(at.leaf.lock());
    } else {
      VersionLock::unlock_unchanged(at.leaf.lock());
    }
    writer.add_to_size(inserted);
    return i;
  }

  template <class Get, class Done>
  int64_t erase_run(IndexWriter& writer, int64_t n, Get&& get, Done&& done) const {
    const Descent at = lock_leaf(get(0), true);
    if (at.outcome != Outcome::yes) {
      uint64_t value;
      done(0, erase_as(writer, get(0), value) ? Outcome::yes : Outcome::no);
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
    } else if (!settle_leaf(at, get(0))) [[unlikely]] {
      remove_empty_leaf(get(0));
    }
    writer.add_to_size(-erased);
    return i;
  }

  // What the batches are made of too.

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
      } else if (shrinking ? is_sparse(place.node) : place.node.count() == Layout::inner_capacity) [[unlikely]] {
        if (shrinking) {
          // Merging is worth a try and not a wait: whoever comes next will try again.
          if (!sideways && shrink(at.parent, place, key)) return at;
        } else if (make_room(sideways ? Place{} : at.parent, place) != Outcome::full) {
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
      if (!place.unchanged()) return at;
      if (down) {
        at.parent = place;
        sideways = false;
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
      at.outcome = grow_root(at.leaf) ? Outcome::again : Outcome::full;
      VersionLock::unlock(at.leaf.lock());
      return at;
    }
    const bool named = at.parent.node.id != 0;
    if (named && !at.parent.upgrade()) {
      VersionLock::unlock_unchanged(at.leaf.lock());
      at.outcome = Outcome::again;
      return at;
    }
    const Node parent = at.parent.node;
    Node other = named ? even_out_with_neighbour(parent, at.leaf, key) : Node{};
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
      const Key border = split_for(key, at.leaf, other);
      if (named) parent.insert_child(parent.entry_of(border) + 1, border, other.id);
    }
    if (named) VersionLock::unlock(parent.lock());
    return keep_one(at, other, key);
  }

  /// After `key` has gone from a locked leaf: unlocks it, having merged it with a neighbour where it is nearly empty.
  /// false: it is empty and others were in the way.
  bool settle_leaf(const Descent& at, const Key& key) const {
    const int count = at.leaf.count();
    const Node parent = at.parent.node;
    if (count > sparse(true) || at.leaf.id == index_root || parent.id == 0) {
      VersionLock::unlock(at.leaf.lock());
      return true;
    }
    if (!at.parent.upgrade()) {
      VersionLock::unlock(at.leaf.lock());
      return count > 0;
    }
    const Outcome outcome = merge_with_neighbour(parent, at.leaf, key);
    return outcome != Outcome::again || count > 0;
  }

  static constexpr int sparse(bool leaf) { return Layout::capacity(leaf) / 4; }

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
    VersionLock::unlock(at.leaf.lock());
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

  /// An empty leaf costs memory until someone erases beside it, so it is worth a few more tries.
  [[gnu::noinline]] void remove_empty_leaf(const Key& key) const {
    Spin spin;
    for (int attempt = 0; attempt < optimistic_attempts; ++attempt, spin.wait()) {
      const Descent at = lock_leaf(key, true);
      if (at.outcome == Outcome::yes && settle_leaf(at, key)) return;
    }
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
      at.parent = Place{};  // it names this leaf's left neighbour, and may not name this one
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
    VersionLock::unlock((goes_right ? left : right).lock());
    at.outcome = Outcome::yes;
    return at;
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
    VersionLock::unlock(place.node.lock());
    if (named) VersionLock::unlock(parent.node.lock());
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
    VersionLock::unlock(root.node.lock());
    VersionLock::unlock(child.lock());
    arena.give_back_node(child.id);
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
        VersionLock::unlock(at.lock());
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
    VersionLock::unlock(parent.lock());
    VersionLock::unlock(left.lock());
    VersionLock::unlock(right.lock());
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

  /// Entries from `at` on go to `right`, which becomes the right neighbour. With none to go the caller sets the border.
  static void split_at(const Node& node, const Node& right, int at) {
    const int count = node.count(), level = node.level();
    right.set_level(level);
    right.take(node, at, count - at, 0);
    right.set_count(count - at);
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
