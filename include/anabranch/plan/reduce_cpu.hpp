// Row movement and segment reductions on the CPU: parallel over entries, items or groups, one writer per output row.
//
// All are bound by memory: gather reads and writes width * sizeof(T) per entry, combine reads that per entry and writes
// it per item, the reductions read each entry once. Rows are walked in order with unit stride; a column block keeps the
// running sums in L1 while its rows stream by.
#pragma once

#include <algorithm>
#include <cstring>

#include "anabranch/core/parallel.hpp"
#include "anabranch/plan/reduce.hpp"

namespace anabranch {

namespace detail {
inline constexpr int64_t column_block = 512;
inline int64_t rows_per_worker(int64_t width) { return std::max<int64_t>(1, 32768 / std::max<int64_t>(1, width)); }
}  // namespace detail

template <class T>
void gather_cpu(const T* x, const accumulate_t<T>* weights, const int32_t* item_ids, int64_t num_entries,
                int64_t capacity, int64_t width, T* out) {
  parallel_for(capacity, detail::rows_per_worker(width), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      T* to = out + e * width;
      if (e >= num_entries) {
        std::fill(to, to + width, T(0.0f));
      } else if (const T* from = x + item_ids[e] * width; !weights) {
        std::memcpy(to, from, width * sizeof(T));
      } else {
        const accumulate_t<T> weight = weights[e];
        for (int64_t j = 0; j < width; ++j) to[j] = T(weight * static_cast<accumulate_t<T>>(from[j]));
      }
    }
  });
}

template <class T>
void combine_cpu(const T* values, const accumulate_t<T>* weights, const int32_t* item_offsets, const int32_t* entry_ids,
                 int64_t num_items, int64_t width, T* out) {
  using Sum = accumulate_t<T>;
  parallel_for(num_items, detail::rows_per_worker(width), [&](int64_t begin, int64_t end) {
    Sum sum[detail::column_block];
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t first = 0; first < width; first += detail::column_block) {
        const int64_t count = std::min(detail::column_block, width - first);
        std::fill(sum, sum + count, Sum(0));
        for (int32_t i = item_offsets[t]; i < item_offsets[t + 1]; ++i) {
          const int64_t e = entry_ids[i];
          const Sum weight = weights ? weights[e] : Sum(1);
          const T* row = values + e * width + first;
          for (int64_t j = 0; j < count; ++j) sum[j] += weight * static_cast<Sum>(row[j]);
        }
        for (int64_t j = 0; j < count; ++j) out[t * width + first + j] = T(sum[j]);
      }
    }
  });
}

template <class T>
void row_dot_cpu(const T* values, const T* x, const int32_t* item_ids, int64_t num_entries, int64_t capacity,
                 int64_t width, accumulate_t<T>* out) {
  using Sum = accumulate_t<T>;
  constexpr int lanes = 16;  // independent partial sums: a fixed order that the compiler can vectorise
  parallel_for(num_entries, detail::rows_per_worker(width), [&](int64_t begin, int64_t end) {
    for (int64_t e = begin; e < end; ++e) {
      const T* left = values + e * width;
      const T* right = x + item_ids[e] * width;
      Sum partial[lanes] = {};
      int64_t j = 0;
      for (; j + lanes <= width; j += lanes) {
        for (int l = 0; l < lanes; ++l) partial[l] += static_cast<Sum>(left[j + l]) * static_cast<Sum>(right[j + l]);
      }
      Sum sum = 0;
      for (; j < width; ++j) sum += static_cast<Sum>(left[j]) * static_cast<Sum>(right[j]);
      for (int l = 0; l < lanes; ++l) sum += partial[l];
      out[e] = sum;
    }
  });
  std::fill(out + num_entries, out + capacity, accumulate_t<T>(0));
}

template <class T>
void segment_reduce_cpu(const T* values, const int32_t* group_offsets, int64_t num_groups, int64_t width,
                        Reduction reduction, T* out, int32_t* arg) {
  using Sum = accumulate_t<T>;
  const int64_t blocks = (width + detail::column_block - 1) / detail::column_block;
  const int num_workers = workers_for(group_offsets[num_groups] * width, 32768);
  const bool adds = reduction == Reduction::sum || reduction == Reduction::mean;
  parallel_tiles(num_groups * blocks, num_workers, [&](int64_t tile, int) {
    const int64_t g = tile / blocks, first = tile % blocks * detail::column_block;
    const int64_t count = std::min(detail::column_block, width - first);
    const int32_t begin = group_offsets[g], end = group_offsets[g + 1];
    Sum result[detail::column_block] = {};
    int32_t winner[detail::column_block];
    std::fill(winner, winner + count, -1);
    for (int32_t e = begin; e < end; ++e) {
      const T* row = values + e * width + first;
      if (adds) {
        for (int64_t j = 0; j < count; ++j) result[j] += static_cast<Sum>(row[j]);
        continue;
      }
      for (int64_t j = 0; j < count; ++j) {
        if (const Sum value = static_cast<Sum>(row[j]); winner[j] < 0 || replaces(reduction, value, result[j])) {
          result[j] = value;
          winner[j] = e;
        }
      }
    }
    const Sum divisor = reduction == Reduction::mean && end > begin ? static_cast<Sum>(end - begin) : Sum(1);
    for (int64_t j = 0; j < count; ++j) out[g * width + first + j] = T(result[j] / divisor);
    if (arg) std::copy(winner, winner + count, arg + g * width + first);
  });
}

template <class T>
void segment_reduce_backward_cpu(const T* dout, const int32_t* arg, const int32_t* group_offsets, int64_t num_groups,
                                 int64_t capacity, int64_t width, Reduction reduction, T* dvalues) {
  using Sum = accumulate_t<T>;
  const int64_t num_entries = group_offsets[num_groups];
  std::fill(dvalues + num_entries * width, dvalues + capacity * width, T(0.0f));
  const bool wins = reduction == Reduction::max || reduction == Reduction::min;
  parallel_tiles(num_groups, workers_for(num_entries * width, 32768), [&](int64_t g, int) {
    const int32_t begin = group_offsets[g], end = group_offsets[g + 1];
    const Sum divisor = reduction == Reduction::mean && end > begin ? static_cast<Sum>(end - begin) : Sum(1);
    for (int32_t e = begin; e < end; ++e) {
      for (int64_t j = 0; j < width; ++j) {
        const Sum share = static_cast<Sum>(dout[g * width + j]) / divisor;
        dvalues[e * width + j] = T(wins && arg[g * width + j] != e ? Sum(0) : share);
      }
    }
  });
}

}  // namespace anabranch
