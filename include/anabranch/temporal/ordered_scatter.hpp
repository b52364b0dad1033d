// Writing the rows of a batch to rows of a table, in an order that is stated: what is computed, and its plain-loop
// definition.
//
//   ordered_scatter_add   a row of the table gets the sum of the batch's rows that name it, times their weights
//   ordered_scatter       a row of the table becomes the last of the batch's rows that name it
//   latest_of_node        which position of a batch is its node's newest by (time, event id, position)
//
// Layout: table [num_rows, width], index [n] int64, values [n, width], weights [n] or null. An index that names no row
// is passed over. Sums are kept in sum_t<T>: float, double for double, int64 for int64. The batch is worked off in
// stretches of ordered_scatter_stretch positions; within one a row's sum is kept in its order and added to the table
// once, so a table of bfloat16 is rounded once a stretch and not once an entry.
//
// Bytes: values read once, the table's named rows read and written once a stretch. FLOPs: 2 n width. Floor: bytes /
// bandwidth; index and weights are small beside the rows.
#pragma once

#include <cstring>
#include <type_traits>
#include <vector>

#include "anabranch/temporal/events.hpp"

namespace anabranch {

inline constexpr int64_t ordered_scatter_stretch = 16384;

/// The type in which sums over T are kept.
template <class T>
using sum_t = std::conditional_t<std::is_same_v<T, int64_t>, int64_t, accumulate_t<T>>;

template <class T>
struct OrderedScatterAdd {
  T* table;
  const int64_t* index;
  const T *values, *weights;
  int64_t num_rows, width, size;

  ANABRANCH_HOST_DEVICE int64_t row(int64_t position) const {
    const int64_t named = index[position];
    return named >= 0 && named < num_rows ? named : no_node;
  }
  ANABRANCH_HOST_DEVICE sum_t<T> weight(int64_t position) const {
    return weights ? static_cast<sum_t<T>>(weights[position]) : sum_t<T>(1);
  }
};

/// Rows of bytes: any element type is moved alike.
struct OrderedScatter {
  void* table;
  const int64_t* index;
  const void* values;
  int64_t num_rows, row_bytes, size;

  ANABRANCH_HOST_DEVICE int64_t row(int64_t position) const {
    const int64_t named = index[position];
    return named >= 0 && named < num_rows ? named : no_node;
  }
};

/// nodes, times and ids [n]; without ids (null) positions stand for them. A negative node has no newest.
struct NodeEvents {
  const int64_t *nodes, *times, *ids;
  int64_t size;

  ANABRANCH_HOST_DEVICE int64_t id(int64_t position) const { return ids ? ids[position] : 0; }
  /// Whether a comes before b, which is another position.
  ANABRANCH_HOST_DEVICE bool precedes(int64_t a, int64_t b) const {
    return comes_before(times[a], id(a), times[b], id(b)) || (times[a] == times[b] && id(a) == id(b) && a < b);
  }
};

namespace detail {

/// a * b, rounded: the sum that it goes into must not absorb it, or CPU and GPU would differ. On a host whose
/// instruction set has fused multiply-add that takes -ffp-contract=off, which CMakeLists.txt sets: GCC fuses across
/// functions.
template <class Sum>
ANABRANCH_HOST_DEVICE inline Sum rounded_product(Sum a, Sum b) {
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<Sum, float>) return __fmul_rn(a, b);
  if constexpr (std::is_same_v<Sum, double>) return __dmul_rn(a, b);
#endif
  return a * b;
}

}  // namespace detail

template <class T>
void ordered_scatter_add_reference(const OrderedScatterAdd<T>& problem, int64_t stretch = ordered_scatter_stretch) {
  using Sum = sum_t<T>;
  const int64_t width = problem.width;
  for (int64_t begin = 0; begin < problem.size; begin += stretch) {
    const int64_t left = problem.size - begin, end = begin + (left < stretch ? left : stretch);
    std::vector<bool> done(static_cast<size_t>(end - begin));
    for (int64_t first = begin; first < end; ++first) {
      const int64_t row = problem.row(first);
      if (row == no_node || done[first - begin]) continue;
      for (int64_t c = 0; c < width; ++c) {
        Sum sum = 0;
        for (int64_t p = first; p < end; ++p) {
          if (problem.row(p) != row) continue;
          done[p - begin] = true;
          const Sum term = detail::rounded_product(problem.weight(p), static_cast<Sum>(problem.values[p * width + c]));
          sum = p == first ? term : sum + term;
        }
        T& cell = problem.table[row * width + c];
        cell = T(static_cast<Sum>(cell) + sum);
      }
    }
  }
}

inline void ordered_scatter_reference(const OrderedScatter& problem) {
  for (int64_t p = 0; p < problem.size; ++p) {
    if (problem.row(p) == no_node) continue;
    std::memcpy(static_cast<char*>(problem.table) + problem.row(p) * problem.row_bytes,
                static_cast<const char*>(problem.values) + p * problem.row_bytes, problem.row_bytes);
  }
}

inline void latest_of_node_reference(const NodeEvents& events, bool* latest) {
  for (int64_t p = 0; p < events.size; ++p) {
    latest[p] = events.nodes[p] >= 0;
    for (int64_t q = 0; q < events.size; ++q) {
      if (q != p && events.nodes[q] == events.nodes[p] && events.precedes(p, q)) latest[p] = false;
    }
  }
}

}  // namespace anabranch
