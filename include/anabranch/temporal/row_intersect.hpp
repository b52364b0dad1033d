// Sets made of two rows of a graph: what is common, or in one alone. Sums over them and samples of them: what these
// compute, and their plain-loop definitions.
//
// A graph of `nodes` nodes is rows of column ids, ascending and distinct within a row. A pair (left, right) of nodes
// names two rows, and a mode the set: what is in both, in left's alone, or in right's alone. With exclude_pair the two
// nodes themselves are never in it: the edge between them is as if it were not there. Elements ascend.
//   row_set       the set itself, or where it is larger than `capacity` the elements of the smallest hashes of (seed,
//                 left, right, id): a uniform sample without replacement that depends on nothing else
//   row_set_sum   out_p = sum of x over the set, in ascending order, in accumulate_t<T>; or, with weights [pairs,
//                 capacity], of weight k times x of element k of row_set's sample
//   row_set_dot   out_pk = dout_p . x of element k of row_set's sample, 0 where there is none: the gradient to weights
// Source: NCN and NCNC (Wang, Yang, Zhang, arXiv 2302.00890).
//
// Layout: row_offsets int64 [nodes + 1], column_ids int64 [entries], left and right int64 [pairs], x [nodes, width],
// out [pairs, width], ids int64 [pairs, capacity], -1 where none, sizes int64 [pairs], those of the whole sets. Nodes
// out of range have empty rows, ids out of range are in no set, and offsets are cut to the entries: a GPU cannot say
// so.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "anabranch/temporal/events.hpp"

namespace anabranch {

enum class RowSetMode { intersection, left_difference, right_difference };

struct GraphRow {
  const int64_t* ids;
  int64_t size;
};

struct RowPairs {
  const int64_t *row_offsets, *column_ids, *left, *right;
  int64_t nodes, entries, pairs;
  RowSetMode mode;
  bool exclude_pair;

  ANABRANCH_HOST_DEVICE GraphRow row(int64_t node) const {
    if (node < 0 || node >= nodes) return {column_ids, 0};
    int64_t begin = row_offsets[node], end = row_offsets[node + 1];
    begin = begin < 0 ? 0 : begin > entries ? entries : begin;
    end = end < begin ? begin : end > entries ? entries : end;
    return {column_ids + begin, end - begin};
  }

  /// Whether an id may be in the pair's set at all.
  ANABRANCH_HOST_DEVICE bool admits(int64_t pair, int64_t id) const {
    return id >= 0 && id < nodes && !(exclude_pair && (id == left[pair] || id == right[pair]));
  }

  /// The row whose elements are looked at one by one, and the one they are looked for in.
  struct Two {
    GraphRow driver, other;
  };
  ANABRANCH_HOST_DEVICE Two rows(int64_t pair) const {
    const GraphRow l = row(left[pair]), r = row(right[pair]);
    const bool by_right = mode == RowSetMode::right_difference || (mode == RowSetMode::intersection && r.size < l.size);
    return by_right ? Two{r, l} : Two{l, r};
  }

  ANABRANCH_HOST_DEVICE uint64_t hash_of_pair(int64_t seed, int64_t pair) const {
    const uint64_t chain = chained_hash(static_cast<uint64_t>(seed), static_cast<uint64_t>(left[pair]));
    return chained_hash(chain, static_cast<uint64_t>(right[pair]));
  }
};

inline std::vector<int64_t> row_set_of_reference(const RowPairs& problem, int64_t pair) {
  const auto [driver, other] = problem.rows(pair);
  std::vector<int64_t> out;
  for (int64_t i = 0; i < driver.size; ++i) {
    const int64_t id = driver.ids[i];
    bool common = false;
    for (int64_t j = 0; j < other.size; ++j) common |= other.ids[j] == id;
    if (common == (problem.mode == RowSetMode::intersection) && problem.admits(pair, id)) out.push_back(id);
  }
  return out;
}

/// What row_set writes for a pair: its set, or a sample of `capacity` of it.
inline std::vector<int64_t> row_sample_of_reference(const RowPairs& problem, int64_t pair, int64_t capacity,
                                                    int64_t seed) {
  std::vector<int64_t> set = row_set_of_reference(problem, pair);
  if (static_cast<int64_t>(set.size()) <= capacity) return set;
  const uint64_t chain = problem.hash_of_pair(seed, pair);
  const auto hash = [&](int64_t id) { return chained_hash(chain, static_cast<uint64_t>(id)); };
  std::sort(set.begin(), set.end(), [&](int64_t a, int64_t b) { return hash(a) < hash(b); });
  set.resize(capacity);
  std::sort(set.begin(), set.end());
  return set;
}

inline void row_set_reference(const RowPairs& problem, int64_t capacity, int64_t seed, int64_t* ids, int64_t* sizes) {
  for (int64_t p = 0; p < problem.pairs; ++p) {
    const std::vector<int64_t> sample = row_sample_of_reference(problem, p, capacity, seed);
    sizes[p] = static_cast<int64_t>(row_set_of_reference(problem, p).size());
    for (int64_t k = 0; k < capacity; ++k) {
      ids[p * capacity + k] = k < static_cast<int64_t>(sample.size()) ? sample[k] : -1;
    }
  }
}

/// Weights [pairs, capacity] of the elements of row_set's sample; where none are given every element of the set counts
/// once.
template <class T>
struct RowSetWeights {
  bool given = false;
  const T* values = nullptr;
  int64_t capacity = 0, seed = 0;

  ANABRANCH_HOST_DEVICE const T* of_pair(int64_t pair) const { return values + pair * capacity; }
};

/// f(id, weight) for every element of a pair's sum, in order.
template <class T, class F>
void for_each_weighted_reference(const RowPairs& problem, int64_t pair, const RowSetWeights<T>& weights, F&& f) {
  using Sum = accumulate_t<T>;
  if (!weights.given) {
    for (const int64_t id : row_set_of_reference(problem, pair)) f(id, Sum(1));
    return;
  }
  const T* weight = weights.of_pair(pair);
  for (const int64_t id : row_sample_of_reference(problem, pair, weights.capacity, weights.seed)) {
    f(id, static_cast<Sum>(*weight++));
  }
}

template <class T>
void row_set_sum_reference(const RowPairs& problem, const RowSetWeights<T>& weights, const T* x, int64_t width,
                           T* out) {
  using Sum = accumulate_t<T>;
  for (int64_t p = 0; p < problem.pairs; ++p) {
    std::vector<Sum> sums(width);
    for_each_weighted_reference(problem, p, weights, [&](int64_t id, Sum weight) {
      for (int64_t d = 0; d < width; ++d) sums[d] += weight * static_cast<Sum>(x[id * width + d]);
    });
    for (int64_t d = 0; d < width; ++d) out[p * width + d] = T(sums[d]);
  }
}

/// dx [nodes, width] for dout [pairs, width]: each node sums over its pairs in order, in accumulate_t<T>.
template <class T>
void row_set_sum_backward_reference(const RowPairs& problem, const RowSetWeights<T>& weights, const T* dout,
                                    int64_t width, T* dx) {
  using Sum = accumulate_t<T>;
  std::vector<Sum> sums(problem.nodes * width);
  for (int64_t p = 0; p < problem.pairs; ++p) {
    for_each_weighted_reference(problem, p, weights, [&](int64_t id, Sum weight) {
      for (int64_t d = 0; d < width; ++d) sums[id * width + d] += weight * static_cast<Sum>(dout[p * width + d]);
    });
  }
  for (size_t i = 0; i < sums.size(); ++i) dx[i] = T(sums[i]);
}

template <class T>
void row_set_dot_reference(const RowPairs& problem, const T* dout, const T* x, int64_t width, int64_t capacity,
                           int64_t seed, T* out) {
  using Sum = accumulate_t<T>;
  for (int64_t p = 0; p < problem.pairs; ++p) {
    const std::vector<int64_t> sample = row_sample_of_reference(problem, p, capacity, seed);
    for (int64_t k = 0; k < capacity; ++k) {
      Sum sum = 0;
      for (int64_t d = 0; k < static_cast<int64_t>(sample.size()) && d < width; ++d) {
        sum += static_cast<Sum>(dout[p * width + d]) * static_cast<Sum>(x[sample[k] * width + d]);
      }
      out[p * capacity + k] = T(sum);
    }
  }
}

}  // namespace anabranch
