// The N-cache's read projects each node's features once (ncache_read_cpu.hpp), not once for each slot that names it.
//
// In a batch of 100 events of CollegeMsg 8.7k occupied slots name 940 nodes, in one of 2000 164k name 1.5k: 9 and 111
// slots a node (measured, second half of the stream, M 32/16). A slot then reads 3F sums of its node instead of D
// features, and 6 F D FLOPs are left for a node alone. The nodes are numbered in the order of the slots by the pairs'
// hash, on one thread. A sum continues where the node's ends, so results have the bits of a read without this, whatever
// else is in the batch. Measured at D = 72, De = 0, gather included: least of several runs,
// batch 100 0.58 -> 0.40 ms, batch 2000 14.2 -> 9.3.
#pragma once

#include "anabranch/core/memory.hpp"
#include "anabranch/core/parallel.hpp"
#include "anabranch/temporal/ncache_read.hpp"
#include "anabranch/temporal/pair_numbers_cpu.hpp"

namespace anabranch {

/// Sums of the nodes' part of gx: rows [nodes, columns], and each slot's row.
template <class Sum>
struct NCacheProjected {
  const Sum* rows = nullptr;  // null: nothing is projected
  const int32_t* row_of_slot = nullptr;
};

namespace detail {

/// Which nodes the slots name, each once, in the order of the slots.
class DistinctNodes {
 public:
  template <class T>
  explicit DistinctNodes(const NCacheRead<T>& problem) : ids_(problem.count + 1), row_of_slot_(problem.count) {
    // At least two places a slot: keys beyond the nodes are numbered too.
    KeyNumbers<uint32_t, 0> numbers((problem.count + 7) / 8);
    numbers.clear();
    int32_t* rows = row_of_slot_.data();
    count_ = numbers.add(
                 problem.keys, problem.count, 1, problem.count + 1, ids_.data(),
                 [=](int64_t slot, int64_t number, int64_t) { rows[slot] = static_cast<int32_t>(number - 1); },
                 [](int64_t) {}) -
             1;
  }

  int64_t count() const { return count_; }
  const int64_t* ids() const { return ids_.data(); }
  const int32_t* row_of_slot() const { return row_of_slot_.data(); }

 private:
  int64_t count_ = 0;
  Temporary<int64_t> ids_;
  Temporary<int32_t> row_of_slot_;
};

}  // namespace detail

}  // namespace anabranch
