// Connected components of a graph that only grows, with the last additions taken back in reverse order.
//
// Union by size without path compression: a tree of k vertices is at most log2(k) deep, and a union changes two words,
// so taking it back costs O(1).
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace anabranch {

/// The vertices are 0 ... num_nodes - 1. No argument is checked. Memory: 8 bytes a vertex and 16 a join.
class RollbackUnionFind {
 public:
  explicit RollbackUnionFind(int64_t num_nodes) : parent_(static_cast<std::size_t>(num_nodes), -1) {}

  int64_t num_nodes() const { return static_cast<int64_t>(parent_.size()); }
  int64_t num_components() const { return num_nodes() - num_joins(); }

  /// Joins that are in force: unions that found two components. A number to give to `rollback`.
  int64_t num_joins() const { return static_cast<int64_t>(joined_.size()); }

  /// The vertex that stands for v's component. O(log num_nodes).
  int64_t find(int64_t v) const {
    while (parent_[v] >= 0) v = parent_[v];
    return v;
  }
  bool connected(int64_t u, int64_t v) const { return find(u) == find(v); }

  /// Vertices in v's component. O(log num_nodes).
  int64_t component_size(int64_t v) const { return -parent_[find(v)]; }

  /// Joins the components of u and v, under the root of the larger one. Whether they were two. O(log num_nodes).
  bool unite(int64_t u, int64_t v) {
    u = find(u);
    v = find(v);
    if (u == v) return false;
    if (parent_[u] > parent_[v]) std::swap(u, v);  // u's is the larger one
    joined_.emplace_back(v, parent_[v]);
    parent_[u] += parent_[v];
    parent_[v] = u;
    return true;
  }

  /// Takes back the last joins until `num_joins` are left. O(1) each. That number must not be above num_joins().
  void rollback(int64_t num_joins) {
    while (this->num_joins() > num_joins) {
      const auto [v, negative_size] = joined_.back();
      joined_.pop_back();
      parent_[parent_[v]] -= negative_size;
      parent_[v] = negative_size;
    }
  }

 private:
  std::vector<int64_t> parent_;                      // a root has minus the size of its component
  std::vector<std::pair<int64_t, int64_t>> joined_;  // the root that became a child, and the word it had
};

}  // namespace anabranch
