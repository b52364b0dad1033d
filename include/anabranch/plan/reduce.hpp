// Moving rows through a plan: gather, combine (the gather's adjoint), row products and segment reductions; definitions.
//
// Sums run in entry order in accumulate_t<T>. Rows past group_offsets[num_groups] are written as zero by gather,
// because a tensor must have defined contents, and are never read.
#pragma once

#include <cstdint>

#include "anabranch/core/scalar.hpp"

namespace anabranch {

enum class Reduction { sum, mean, max, min };

/// out[e, :] = (weights ? weights[e] : 1) * x[item_ids[e], :]; zero for num_entries <= e < capacity.
template <class T>
void gather_reference(const T* x, const accumulate_t<T>* weights, const int32_t* item_ids, int64_t num_entries,
                      int64_t capacity, int64_t width, T* out) {
  for (int64_t e = 0; e < capacity; ++e) {
    for (int64_t j = 0; j < width; ++j) {
      if (e >= num_entries) {
        out[e * width + j] = T(0.0f);
      } else {
        const T value = x[item_ids[e] * width + j];
        out[e * width + j] = weights ? T(weights[e] * static_cast<accumulate_t<T>>(value)) : value;
      }
    }
  }
}

/// out[t, :] = sum over the entries e of item t, ascending, of (weights ? weights[e] : 1) * values[e, :].
template <class T>
void combine_reference(const T* values, const accumulate_t<T>* weights, const int32_t* item_offsets,
                       const int32_t* entry_ids, int64_t num_items, int64_t width, T* out) {
  for (int64_t t = 0; t < num_items; ++t) {
    for (int64_t j = 0; j < width; ++j) {
      accumulate_t<T> sum = 0;
      for (int32_t i = item_offsets[t]; i < item_offsets[t + 1]; ++i) {
        const int64_t e = entry_ids[i];
        sum += (weights ? weights[e] : 1) * static_cast<accumulate_t<T>>(values[e * width + j]);
      }
      out[t * width + j] = T(sum);
    }
  }
}

/// out[e] = <values[e, :], x[item_ids[e], :]>: the gradient of both gather's and combine's weights.
template <class T>
void row_dot_reference(const T* values, const T* x, const int32_t* item_ids, int64_t num_entries, int64_t capacity,
                       int64_t width, accumulate_t<T>* out) {
  for (int64_t e = 0; e < capacity; ++e) {
    accumulate_t<T> sum = 0;
    for (int64_t j = 0; e < num_entries && j < width; ++j) {
      sum += static_cast<accumulate_t<T>>(values[e * width + j]) *
             static_cast<accumulate_t<T>>(x[item_ids[e] * width + j]);
    }
    out[e] = sum;
  }
}

/// True where `value` replaces `best`: strictly better, or the first NaN.
template <class Sum>
ANABRANCH_HOST_DEVICE inline bool replaces(Reduction reduction, Sum value, Sum best) {
  if (best != best) return false;
  return value != value || (reduction == Reduction::max ? value > best : value < best);
}

/// out[g, :] over the rows of group g; an empty group gives 0. For max and min, arg[g, :] is the entry that won (the
/// first of equals; a NaN wins) or -1 in an empty group; for sum and mean arg may be null.
template <class T>
void segment_reduce_reference(const T* values, const int32_t* group_offsets, int64_t num_groups, int64_t width,
                              Reduction reduction, T* out, int32_t* arg) {
  using Sum = accumulate_t<T>;
  for (int64_t g = 0; g < num_groups; ++g) {
    const int32_t begin = group_offsets[g], end = group_offsets[g + 1];
    for (int64_t j = 0; j < width; ++j) {
      Sum result = 0;
      int32_t winner = -1;
      for (int32_t e = begin; e < end; ++e) {
        const Sum value = static_cast<Sum>(values[e * width + j]);
        if (reduction == Reduction::sum || reduction == Reduction::mean) {
          result += value;
        } else if (winner < 0 || replaces(reduction, value, result)) {
          result = value;
          winner = e;
        }
      }
      if (reduction == Reduction::mean && end > begin) result /= static_cast<Sum>(end - begin);
      out[g * width + j] = T(result);
      if (arg) arg[g * width + j] = winner;
    }
  }
}

/// dvalues[e, :] from dout[g, :]: the row's share (sum, mean) or everything to the winner (max, min); zero past the
/// end.
template <class T>
void segment_reduce_backward_reference(const T* dout, const int32_t* arg, const int32_t* group_offsets,
                                       int64_t num_groups, int64_t capacity, int64_t width, Reduction reduction,
                                       T* dvalues) {
  using Sum = accumulate_t<T>;
  for (int64_t i = group_offsets[num_groups] * width; i < capacity * width; ++i) dvalues[i] = T(0.0f);
  for (int64_t g = 0; g < num_groups; ++g) {
    const int32_t begin = group_offsets[g], end = group_offsets[g + 1];
    for (int32_t e = begin; e < end; ++e) {
      for (int64_t j = 0; j < width; ++j) {
        const Sum upstream = static_cast<Sum>(dout[g * width + j]);
        Sum share = upstream;
        if (reduction == Reduction::mean) share = upstream / static_cast<Sum>(end - begin);
        if (reduction == Reduction::max || reduction == Reduction::min) share = arg[g * width + j] == e ? upstream : 0;
        dvalues[e * width + j] = T(share);
      }
    }
  }
}

}  // namespace anabranch
