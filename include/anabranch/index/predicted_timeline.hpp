// PredictedTimeline: which vertices of a graph are connected, while edges come and go about when they were said to.
//
//   #include <anabranch/index/predicted_timeline.hpp>
//   anabranch::PredictedTimeline graph(num_nodes);
//   const int64_t edge = graph.insert(u, v, 400);  // expected to live for 400 events
//   if (graph.connected(a, b)) ...
//   graph.erase(edge);                             // whenever it really goes: early, on time or late
//
// After "The Predicted-Updates Dynamic Model" (COLT 2024, arXiv 2307.08890): an offline algorithm run online on a
// timeline that is predicted. This is one instance of that paper, connectivity under insertions and deletions of edges.
// It is not triconnectivity and not shortest paths of planar graphs. Predictions steer work alone: every answer is
// exact, and no edge goes before it is erased.
//
// The offline algorithm is divide and conquer over time. Time is a binary tree of aligned intervals [i 2^k, (i+1) 2^k).
// An edge that lives in [since, expiry) is permanent in the largest of them that this contains, and a union-find with
// rollback holds the permanent edges of all nodes from the root to the present leaf, in that order. So each edge is in
// it once, and a node is redone only when time leaves it or when its set of permanent edges changes:
//   - the path moves when an edge must go, and then only nodes that do not hold both times are redone. An edge that
//     goes as predicted lies in one of them;
//   - an edge that goes early lies in a node that goes on: what lies above that edge is redone;
//   - an edge that stays is predicted anew when the path next moves: it is given twice the time by which it is late;
//   - new edges, until the path moves, lie on top as if they were in leaves.
// The nodes are not stored. Where an edge is permanent follows from since, expiry and the time by two xors.
//
// Work, in unions: at most two for each level that an edge passes, so O(log lifetime) for each edge where predictions
// are right; an edge that is early by e redoes nodes of about e events. Whatever the predictions, never more than
// recompute-on-delete pays for the same calls (one union for an insertion, one for each live edge after a deletion):
// a move redoes each live edge at most once and is made only where an edge must go, and an insertion costs one. A union
// here takes about four times as long as in a loop over an array of edges, for its place on the path is noted.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <limits>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "anabranch/core/check.hpp"
#include "anabranch/index/bskiplist.hpp"
#include "anabranch/index/rollback_union_find.hpp"

namespace anabranch {

/// A multigraph on the vertices 0 ... num_nodes - 1; loops and parallel edges are edges as any. One thread at a time,
/// queries included: they do the work that insertions and erasures have left. All but the index's std::bad_alloc are
/// std::invalid_argument, thrown before anything is changed. Memory: 24 bytes a vertex, some 150 a live edge.
class PredictedTimeline {
 public:
  explicit PredictedTimeline(int64_t num_nodes) : components_(checked_size(num_nodes)) {}

  int64_t num_nodes() const { return components_.num_nodes(); }
  /// Edges that are alive.
  int64_t num_edges() const { return static_cast<int64_t>(slot_of_.size()); }
  /// The time: events so far. Each insertion and each erasure is one.
  int64_t clock() const { return clock_; }

  /// Adds an edge that is expected to be erased by the `predicted_lifetime`-th event from now. Its id: 0, 1, 2, ...
  /// O(log num_edges).
  int64_t insert(int64_t u, int64_t v, int64_t predicted_lifetime) {
    check_node("insert", "u", u);
    check_node("insert", "v", v);
    check(predicted_lifetime >= 0, "PredictedTimeline.insert: predicted_lifetime is ", predicted_lifetime,
          ", must not be negative; give the number of events that the edge is expected to live");
    const int64_t now = clock_ + 1, expiry = later(now, predicted_lifetime), id = next_id_;
    const int64_t slot = free_slots_.empty() ? static_cast<int64_t>(edges_.size()) : free_slots_.back();
    expiries_.insert({expiry, id}, static_cast<uint64_t>(slot));
    slot_of_.emplace(id, slot);
    if (free_slots_.empty()) {
      edges_.emplace_back();
    } else {
      free_slots_.pop_back();
    }
    edges_[slot] = {u, v, id, now, expiry, expiry};
    pending_.push_back(slot);
    clock_ = now;
    return next_id_++;
  }

  /// Takes away an edge. O(log num_edges), and O(1) for each union that is taken back.
  void erase(int64_t edge) {
    const auto found = slot_of_.find(edge);
    check(found != slot_of_.end(), "PredictedTimeline.erase: edge is ", edge,
          ", must be the id of a live edge; use what insert returned, once");
    const int64_t slot = found->second;
    Edge& gone = edges_[slot];
    expiries_.erase({gone.expiry, gone.id});
    slot_of_.erase(found);
    gone.alive = false;
    ++dead_;
    ++clock_;
    // An edge that joined nothing, or that no query has seen yet, leaves the components as they are.
    if (gone.position != pending) {
      must_recompute_ = true;
      if (gone.joined) {
        cut(gone.position);
        must_move_ = true;
      }
    }
    if (dead_ > num_edges() + 64) drop_dead();
  }

  /// Lets events pass that change no edge here. O(1).
  void advance(int64_t events = 1) {
    check(events >= 0 && events <= last_advance - clock_, "PredictedTimeline.advance: events is ", events,
          ", must be from 0 to 2^62 with the events so far; time does not go back");
    clock_ += events;
  }

  /// Whether a path leads from u to v now.
  bool connected(int64_t u, int64_t v) {
    check_node("connected", "u", u);
    check_node("connected", "v", v);
    update();
    return components_.connected(u, v);
  }

  int64_t num_components() {
    update();
    return components_.num_components();
  }

  /// When the next edge is expected to go, and its id: the first candidate of a cache that must evict. An edge that has
  /// outlived this may have been predicted anew. O(log num_edges).
  std::optional<std::pair<int64_t, int64_t>> next_expiry() const {
    const auto first = expiries_.lower_bound(least_expiry);
    return first ? std::optional(first->first) : std::nullopt;
  }

  /// Work so far: edges put into the union-find, again or for the first time.
  int64_t unions() const { return unions_; }
  /// Moves of the path so far: how often some of its nodes were redone.
  int64_t rebuilds() const { return rebuilds_; }
  /// What `unions` would be of recompute-on-delete, which begins anew at the first query after an erasure. `unions` is
  /// never above it.
  int64_t recompute_unions() const { return recompute_unions_; }

 private:
  static constexpr int64_t last_advance = int64_t{1} << 62;
  static constexpr int64_t pending = -1;  // position of an edge that is not in the union-find
  static constexpr int num_levels = 63;
  static constexpr int top = -1;  // level of new edges, below all leaves
  static constexpr std::pair<int64_t, int64_t> least_expiry{std::numeric_limits<int64_t>::min(), 0};

  struct Edge {
    int64_t u, v, id;
    int64_t since, expiry;       // where it is permanent
    int64_t predicted;           // the expiry that was given with it
    int64_t position = pending;  // in path_
    int level = top;             // of its node in path_
    bool alive = true;
    bool joined = false;
  };
  struct Entry {
    int64_t slot;
    int64_t joins_before;
  };

  static int64_t checked_size(int64_t num_nodes) {
    check(num_nodes >= 0 && num_nodes <= int64_t{1} << 48, "PredictedTimeline: num_nodes is ", num_nodes,
          ", must be from 0 to 2^48; give the number of vertices");
    return num_nodes;
  }
  void check_node(const char* op, const char* name, int64_t v) const {
    check(v >= 0 && v < num_nodes(), "PredictedTimeline.", op, ": ", name, " is ", v, ", must be from 0 to ",
          num_nodes() - 1, " (num_nodes is ", num_nodes(), "); number the vertices from 0");
  }

  /// time + events, at most the end of time.
  static int64_t later(int64_t time, int64_t events) {
    constexpr int64_t end = std::numeric_limits<int64_t>::max();
    return events > end - time ? end : time + events;
  }

  /// The k of the largest [i 2^k, (i+1) 2^k) that holds `now` and lies in [since, expiry): it begins too early from the
  /// highest bit on in which `now` and since - 1 differ, and it ends too late from the highest in which `now` and
  /// expiry differ.
  static int level_at(int64_t now, int64_t since, int64_t expiry) {
    const auto differ = [&](int64_t time) { return std::bit_width(static_cast<uint64_t>(now ^ time)); };
    return std::min(differ(since - 1), differ(expiry)) - 1;
  }

  void free_slot(int64_t slot) {
    free_slots_.push_back(slot);
    --dead_;
  }

  /// Takes what lies at `position` and above out of the union-find.
  void cut(int64_t position) {
    components_.rollback(path_[position].joins_before);
    for (std::size_t i = position; i < path_.size(); ++i) {
      edges_[path_[i].slot].position = pending;
      pending_.push_back(path_[i].slot);
    }
    path_.resize(position);
  }

  void push(int64_t slot) {
    Edge& edge = edges_[slot];
    edge.position = static_cast<int64_t>(path_.size());
    path_.push_back({slot, components_.num_joins()});
    edge.joined = components_.unite(edge.u, edge.v);
    ++unions_;
  }

  void drop_dead_pending() {
    std::erase_if(pending_, [&](int64_t slot) {
      const bool dead = !edges_[slot].alive;
      if (dead) free_slot(slot);
      return dead;
    });
  }

  /// Forgets erased edges that lie about. Those in path_ joined nothing, so nothing else changes.
  void drop_dead() {
    drop_dead_pending();
    std::erase_if(path_, [&](const Entry& entry) {
      const bool dead = !edges_[entry.slot].alive;
      if (dead) free_slot(entry.slot);
      return dead;
    });
    for (std::size_t i = 0; i < path_.size(); ++i) edges_[path_[i].slot].position = static_cast<int64_t>(i);
  }

  /// Brings the union-find to the present.
  void update() {
    if (pending_.empty() && !must_recompute_) return;
    drop_dead_pending();
    recompute_unions_ += must_recompute_ ? num_edges() : static_cast<int64_t>(pending_.size());
    must_recompute_ = false;
    if (must_move_) return move();
    for (const int64_t slot : pending_) push(slot);
    pending_.clear();
  }

  /// Moves the path from path_time_ to the present.
  void move() {
    // A node holds both times if its level is not below the highest bit in which they differ.
    const int first_shared = std::bit_width(static_cast<uint64_t>(path_time_ ^ clock_));
    std::size_t kept = path_.size();
    while (kept > 0 && edges_[path_[kept - 1].slot].level < first_shared) --kept;
    if (kept < path_.size()) cut(static_cast<int64_t>(kept));
    drop_dead_pending();
    predict_anew();
    for (const int64_t slot : pending_) {
      Edge& edge = edges_[slot];
      edge.level = level_at(clock_, edge.since, edge.expiry);
      by_level_[edge.level].push_back(slot);
    }
    pending_.clear();
    // In a node, by expiry would save 1 to 15 % of the unions and take twice the time.
    for (int level = num_levels - 1; level >= 0; --level) {
      for (const int64_t slot : by_level_[level]) push(slot);
      by_level_[level].clear();
    }
    path_time_ = clock_;
    must_move_ = false;
    ++rebuilds_;
  }

  /// Gives new expiries to the edges that have outlived theirs. None of them is in path_ now: a node that holds the
  /// present ends before its permanent edges expire.
  void predict_anew() {
    for (auto first = next_expiry(); first && first->first <= clock_; first = next_expiry()) {
      const auto [expiry, id] = *first;
      const int64_t slot = slot_of_.at(id);
      Edge& edge = edges_[slot];
      const int64_t extended = later(clock_, std::max<int64_t>(clock_ - edge.predicted, 1));
      expiries_.insert({extended, id}, static_cast<uint64_t>(slot));
      edge.since = clock_;
      edge.expiry = extended;
      expiries_.erase({expiry, id});
    }
  }

  RollbackUnionFind components_;
  BSkipList<std::pair<int64_t, int64_t>> expiries_;  // (expiry, id) of the live edges -> slot
  std::unordered_map<int64_t, int64_t> slot_of_;     // id of a live edge -> slot
  std::vector<Edge> edges_;                          // by slot
  std::vector<int64_t> free_slots_;
  std::vector<Entry> path_;       // the edges in the union-find, from the root of the tree to the leaf of path_time_
  std::vector<int64_t> pending_;  // slots of the others
  std::vector<int64_t> by_level_[num_levels];  // empty between moves
  int64_t clock_ = 0, path_time_ = 0, next_id_ = 0;
  int64_t dead_ = 0;  // erased edges that still have a slot
  bool must_move_ = false, must_recompute_ = false;
  int64_t unions_ = 0, rebuilds_ = 0, recompute_unions_ = 0;
};

}  // namespace anabranch
