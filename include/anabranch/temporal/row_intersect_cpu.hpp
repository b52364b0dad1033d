// Sets of two rows of a graph (row_intersect.hpp defines them) on the CPU: a pair's set is collected into a list of ids
// that stays in the nearest caches, of which a sample may be chosen by hashes, then its rows of x are summed
// (row_sums_cpu.hpp).
//
// Collecting walks both rows at once without a branch on what is found, 2 to 3 cycles an element, or gallops through
// the longer row where the other is less than a sixteenth of it: short * log(long / short) steps. Then size * width *
// sizeof(T) bytes of x are read, prefetched. Floor: those bytes, and 8 for each element walked, over the bandwidth.
//
// The backward collects the sets of some pairs on several threads, a million ids at most, then each worker adds to the
// nodes it owns (NodeShare) in the order of the pairs: one order of summation for every number of threads.
#pragma once

#include <memory>
#include <numeric>

#include "anabranch/core/memory.hpp"
#include "anabranch/core/parallel.hpp"
#include "anabranch/temporal/row_intersect.hpp"
#include "anabranch/temporal/row_sums_cpu.hpp"

namespace anabranch {

namespace detail {

/// The first position at or after `from` whose id is not less, by steps that double and then a binary search.
inline int64_t gallop(const GraphRow& row, int64_t from, int64_t id) {
  int64_t step = 1, low = from, high = from;
  while (high < row.size && row.ids[high] < id) {
    low = high + 1;
    high += step;
    step *= 2;
  }
  return std::lower_bound(row.ids + low, row.ids + std::min(high, row.size), id) - row.ids;
}

/// Writes the pair's set to out, which has room for one id more than the driver has; returns its size.
inline int64_t collect_row_set(const RowPairs& problem, int64_t pair, int64_t* out) {
  const auto [driver, other] = problem.rows(pair);
  const bool common = problem.mode == RowSetMode::intersection;
  const int64_t no_id = -1, left = problem.exclude_pair ? problem.left[pair] : no_id;
  const int64_t right = problem.exclude_pair ? problem.right[pair] : no_id;
  const auto admits = [&](int64_t id) { return (id != left) & (id != right); };
  int64_t size = 0, i = 0, j = 0;
  if (other.size > 16 * driver.size) {
    for (; i < driver.size; ++i) {
      const int64_t id = driver.ids[i];
      j = gallop(other, j, id);
      out[size] = id;
      size += ((j < other.size && other.ids[j] == id) == common) & admits(id);
    }
  } else if (common && driver.size > 0) {
    while (i < driver.size && j < other.size) {
      const int64_t a = driver.ids[i], b = other.ids[j];
      out[size] = a;
      size += (a == b) & admits(a);
      i += a <= b;
      j += b <= a;
    }
  } else {
    while (i < driver.size && j < other.size) {
      const int64_t a = driver.ids[i], b = other.ids[j];
      out[size] = a;
      size += (a < b) & admits(a);
      i += a <= b;
      j += b <= a;
    }
    for (; i < driver.size; ++i) {
      out[size] = driver.ids[i];
      size += admits(driver.ids[i]);
    }
  }
  return size;
}

/// What all pairs' walks come to, at most: elements of both rows.
inline int64_t row_pair_work(const RowPairs& problem) {
  int64_t work = 0;
  for (int64_t p = 0; p < problem.pairs; ++p) {
    const auto [driver, other] = problem.rows(p);
    work += driver.size + std::min(other.size, 16 * driver.size) + 16;
  }
  return work;
}

/// f(pair, ids, size) for every pair of [begin, end), on several threads; long and short rows balance.
template <class F>
void for_each_row_set(const RowPairs& problem, int64_t begin, int64_t end, int workers, F&& f) {
  constexpr int64_t tile = 8;
  std::vector<std::vector<int64_t>> lists(workers);
  parallel_tiles((end - begin + tile - 1) / tile, workers, [&](int64_t t, int worker) {
    std::vector<int64_t>& list = lists[worker];
    for (int64_t p = begin + t * tile; p < std::min(begin + (t + 1) * tile, end); ++p) {
      const auto room = static_cast<size_t>(problem.rows(p).driver.size + 1);
      if (list.size() < room) list.resize(2 * room);
      f(p, list.data(), collect_row_set(problem, p, list.data()));
    }
  });
}

/// Keeps the `capacity` ids of the smallest hashes, ascending, at the front of ids; returns how many there are.
inline int64_t sample_row_set(const RowPairs& problem, int64_t pair, int64_t capacity, int64_t seed, int64_t* ids,
                              int64_t size) {
  if (size <= capacity || capacity == 0) return std::min(size, capacity);
  thread_local std::vector<uint64_t> hashes;
  hashes.resize(2 * size);
  uint64_t* ordered = hashes.data() + size;
  const uint64_t chain = problem.hash_of_pair(seed, pair);
  for (int64_t i = 0; i < size; ++i) hashes[i] = ordered[i] = chained_hash(chain, static_cast<uint64_t>(ids[i]));
  std::nth_element(ordered, ordered + capacity - 1, ordered + size);
  const uint64_t last = ordered[capacity - 1];  // hashes of one chain are distinct: the hash is a bijection of the id
  for (int64_t i = 0, kept = 0; i < size; ++i) {
    if (hashes[i] <= last) ids[kept++] = ids[i];
  }
  return capacity;
}

}  // namespace detail

/// row_set_sum_reference, without weights to the bit. All rows are valid.
template <class T>
void row_set_sum_cpu(const RowPairs& problem, const RowSetWeights<T>& weights, const T* x, int64_t width, T* out) {
  const auto kernels = row_sum_kernels<T>();
  const int workers = workers_for(detail::row_pair_work(problem) * (width / 16 + 1), 32768);
  detail::for_each_row_set(problem, 0, problem.pairs, workers, [&](int64_t p, int64_t* ids, int64_t size) {
    if (!weights.given) {
      kernels.sum(x, width, ids, size, out + p * width);
    } else {
      const int64_t count = detail::sample_row_set(problem, p, weights.capacity, weights.seed, ids, size);
      kernels.weighted_sum(x, width, ids, weights.of_pair(p), count, out + p * width);
    }
  });
}

/// row_set_sum_backward_reference, without weights to the bit.
template <class T>
void row_set_sum_backward_cpu(const RowPairs& problem, const RowSetWeights<T>& weights, const T* dout, int64_t width,
                              T* dx) {
  using Sum = accumulate_t<T>;
  constexpr bool own = std::is_same_v<T, Sum>;
  constexpr int64_t most_ids = int64_t{1} << 20;
  const auto kernels = row_sum_kernels<T>();
  const int64_t numbers = problem.nodes * width;
  const Temporary<Sum> wide(own ? 0 : numbers);
  Sum* sums;
  if constexpr (own) {
    sums = dx;
  } else {
    sums = wide.data();
  }
  parallel_for(numbers, 65536, [&](int64_t begin, int64_t end) { std::fill(sums + begin, sums + end, Sum(0)); });
  std::vector<int64_t> offsets, sizes;
  for (int64_t first = 0, last = 0; first < problem.pairs; first = last) {
    int64_t room = 0;
    offsets.clear();
    for (; last < problem.pairs && (last == first || room < most_ids); ++last) {
      offsets.push_back(room);
      room += problem.rows(last).driver.size + 1;
    }
    sizes.resize(last - first);
    const Temporary<int64_t> ids(room);
    const int collecting = workers_for(room, 16384);
    parallel_tiles((last - first + 7) / 8, collecting, [&](int64_t tile, int) {
      for (int64_t p = first + 8 * tile; p < std::min(first + 8 * tile + 8, last); ++p) {
        int64_t* set = ids.data() + offsets[p - first];
        int64_t& size = sizes[p - first];
        size = detail::collect_row_set(problem, p, set);
        if (weights.given) {
          size = detail::sample_row_set(problem, p, weights.capacity, weights.seed, set, size);
        }
      }
    });
    const int adding = workers_for(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}) * (width / 16 + 1), 32768);
    parallel_workers(adding, [&](int worker) {
      const NodeShare share{worker, adding};
      for (int64_t p = first; p < last; ++p) {
        const int64_t* set = ids.data() + offsets[p - first];
        const T* weight = weights.of_pair(p);
        for (int64_t k = 0; k < sizes[p - first]; ++k) {
          if (!share.owns(set[k])) continue;
          Sum* sum = sums + set[k] * width;
          weights.given ? kernels.add_weighted(dout + p * width, width, weight[k], sum)
                        : kernels.add(dout + p * width, width, sum);
        }
      }
    });
  }
  if constexpr (!own) {
    parallel_for(numbers, 65536, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) dx[i] = T(sums[i]);
    });
  }
}

/// row_set_dot_reference.
template <class T>
void row_set_dot_cpu(const RowPairs& problem, const T* dout, const T* x, int64_t width, int64_t capacity, int64_t seed,
                     T* out) {
  const auto kernels = row_sum_kernels<T>();
  const int workers = workers_for(detail::row_pair_work(problem) * (width / 16 + 1), 32768);
  detail::for_each_row_set(problem, 0, problem.pairs, workers, [&](int64_t p, int64_t* ids, int64_t size) {
    const int64_t count = detail::sample_row_set(problem, p, capacity, seed, ids, size);
    kernels.dots(dout + p * width, x, width, ids, count, out + p * capacity);
    std::fill_n(out + p * capacity + count, capacity - count, T(0));
  });
}

/// row_set_reference.
inline void row_set_cpu(const RowPairs& problem, int64_t capacity, int64_t seed, int64_t* ids, int64_t* sizes) {
  const int workers = workers_for(detail::row_pair_work(problem) + problem.pairs * capacity, 32768);
  detail::for_each_row_set(problem, 0, problem.pairs, workers, [&](int64_t p, int64_t* set, int64_t size) {
    sizes[p] = size;
    const int64_t count = detail::sample_row_set(problem, p, capacity, seed, set, size);
    int64_t* to = std::copy_n(set, count, ids + p * capacity);
    std::fill_n(to, capacity - count, int64_t{-1});
  });
}

}  // namespace anabranch
