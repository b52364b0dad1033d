// The N-cache's read (ncache_read.hpp defines it) on the GPU, in one launch: a block of four warps takes 32 slots at a
// time, gathers them, and gives each of its threads a state (slot, f) of an occupied one.
//
// The features of the occupied slots are staged 64 columns at a time, a row per warp, so that rows are read in whole
// sectors and once from memory; a thread keeps the three sums of its state in registers and reads x and the weights
// from shared memory. The weights stay there for all tiles of a block if they fit (24 KB: K = 500 at F = 4 in float),
// else they come from the first cache. More than 128 states in a tile are taken in turns, each staging the rows again.
//
// Bytes: the definition's, each feature row once per slot that names it; FLOPs as defined. Floor: bytes / bandwidth of
// L2. Shared memory: 8.4 KB (16.8 for double) and the weights.
#pragma once

#include <algorithm>

#include "anabranch/core/vector.cuh"
#include "anabranch/temporal/ncache_read.hpp"

namespace anabranch {

namespace detail {

inline constexpr int kNCacheSlots = 32, kNCacheThreads = 128, kNCacheColumns = 64;
inline constexpr int kNCacheStride = kNCacheColumns + 1;  // of the staged rows: no two in one bank
inline constexpr int64_t kNCacheWeightBytes = 24 * 1024;

/// The weights' numbers in shared memory; none where they do not fit.
template <class T>
ANABRANCH_HOST_DEVICE inline int64_t ncache_resident(const NCacheRead<T>& problem) {
  const int64_t numbers = problem.gates() * problem.width();
  return numbers * static_cast<int64_t>(sizeof(accumulate_t<T>)) <= kNCacheWeightBytes ? numbers : 0;
}

template <class T>
size_t ncache_read_shared(const NCacheRead<T>& problem) {
  using Sum = accumulate_t<T>;
  return shared_bytes<Sum, Sum, int>(ncache_resident(problem), kNCacheSlots * kNCacheStride, kNCacheSlots);
}

template <class T>
int64_t ncache_tiles(const NCacheRead<T>& problem) {
  return (problem.count + kNCacheSlots - 1) / kNCacheSlots;
}

/// An angle within a turn, where doubles still tell its turns apart; sine and cosine in float need no more.
__device__ inline double reduced_angle(double angle) {
  if (!(angle < 0x1p50 && angle > -0x1p50)) return angle;
  const double turns = ::rint(angle * 0.15915494309189533577);
  return (angle - turns * 6.28318530717958647692) - turns * 2.4492935982947064e-16;
}
template <class Sum>
__device__ Sum cosine_of(double angle) {
  if constexpr (std::is_same_v<Sum, float>) {
    const double within = reduced_angle(angle);
    return within == angle ? static_cast<float>(::cos(angle)) : ::cosf(static_cast<float>(within));
  } else {
    return ::cos(angle);
  }
}

/// What the threads of a block know of the tile they work on. Every method is called by all threads of the block.
template <class T>
struct NCacheTile {
  using Sum = accumulate_t<T>;
  const NCacheRead<T>& problem;
  const int64_t resident;
  const SharedArray<Sum> weights, x;  // [K, 3F], [32, 65]
  const SharedArray<int> list;        // the occupied slots of the tile
  const int thread, lane, warp;
  int64_t first = 0;
  int count = 0;

  __device__ NCacheTile(const NCacheRead<T>& problem, SharedMemory& shared)
      : problem(problem),
        resident(ncache_resident(problem)),
        weights(shared.take<Sum>(resident)),
        x(shared.take<Sum>(kNCacheSlots * kNCacheStride)),
        list(shared.take<int>(kNCacheSlots)),
        thread(static_cast<int>(threadIdx.x)),
        lane(thread % 32),
        warp(thread / 32) {
    const int64_t gates = problem.gates(), width = problem.width();
    for (int64_t at = thread; at < resident; at += kNCacheThreads) {
      weights[at / width + at % width * gates] = problem.weight[at];
    }
  }

  /// Counts and lists the occupied slots of tile `tile`, whose rows must be in memory.
  __device__ void open(int64_t tile) {
    __syncthreads();  // whoever still reads the tile before
    first = tile * kNCacheSlots;
    const bool occupied = first + lane < problem.count && problem.occupied(first + lane);
    const unsigned mask = __ballot_sync(kAllLanes, occupied);
    count = __popc(mask);
    if (warp == 0 && occupied) list[__popc(mask & ((1u << lane) - 1))] = lane;
    __syncthreads();
  }

  __device__ Sum weight(int64_t gate, int64_t k) const {
    if (resident == 0) return problem.weight[gate * problem.width() + k];
    return weights[k * problem.gates() + gate];
  }

  __device__ Sum input(int64_t i, int64_t k) const {
    if (k < problem.node_width) {
      const T* row = problem.node_row(i);
      return row ? static_cast<Sum>(row[k]) : Sum(0);
    }
    k -= problem.node_width;
    if (k < problem.edge_width) {
      const T* row = problem.edge_row(i);
      return row ? static_cast<Sum>(row[k]) : Sum(0);
    }
    return cosine_of<Sum>(problem.angle(problem.tau(i), k - problem.edge_width));
  }

  /// Columns [begin, begin + 64) of x, where there are so many.
  __device__ void stage(int64_t begin) const {
    __syncthreads();
    for (int rank = warp; rank < count; rank += kNCacheThreads / 32) {
      const int slot = list[rank];
      for (int column = lane; column < kNCacheColumns && begin + column < problem.width(); column += 32) {
        x[rank * kNCacheStride + column] = input(first + slot, begin + column);
      }
    }
    __syncthreads();
  }

  /// Calls f(slot, which state, its gates) for every state of the occupied slots, each by one thread.
  template <class F>
  __device__ void for_each_state(F&& f) const {
    const int64_t size = problem.state_size, width = problem.width();
    for (int64_t base = 0; base < count * size; base += kNCacheThreads) {
      const int64_t mine = base + thread;
      const bool active = mine < count * size;
      const int rank = static_cast<int>(mine / size);
      const int64_t which = mine % size;
      Sum input_sums[3] = {}, hidden_sums[3] = {};
      for (int64_t begin = 0; begin < width; begin += kNCacheColumns) {
        stage(begin);
        if (!active) continue;
        const int columns = static_cast<int>(width - begin < kNCacheColumns ? width - begin : kNCacheColumns);
        for (int column = 0; column < columns; ++column) {
          const Sum value = x[rank * kNCacheStride + column];
#pragma unroll
          for (int gate = 0; gate < 3; ++gate) input_sums[gate] += value * weight(gate * size + which, begin + column);
        }
      }
      if (!active) continue;
      const int slot = list[rank];
      const T* state = problem.states + (first + slot) * size;
#pragma unroll
      for (int gate = 0; gate < 3; ++gate) {
        const int64_t row = gate * size + which;
        input_sums[gate] += problem.bias[row];
        for (int64_t k = 0; k < size; ++k) {
          hidden_sums[gate] += problem.weight_hh[row * size + k] * static_cast<Sum>(state[k]);
        }
        hidden_sums[gate] += problem.bias_hh[row];
      }
      f(first + slot, which,
        GruState<Sum>::of(input_sums[0] + hidden_sums[0], input_sums[1] + hidden_sums[1], input_sums[2], hidden_sums[2],
                          static_cast<Sum>(state[which])));
    }
  }
};

/// One slot of the rows by one thread, its states too.
template <class T>
__device__ void ncache_gather_slot(const NCacheGather<T>& gather, int64_t at) {
  const int64_t from = gather.source(at);
  gather.row_keys[at] = gather.key_of(at, from);
  gather.row_event_ids[at] = from < 0 ? no_event : gather.event_ids[from];
  gather.row_times[at] = from < 0 ? -1 : gather.times[from];
}

template <class T>
__device__ void ncache_gather_state(const NCacheGather<T>& gather, int64_t number) {
  const int64_t at = number / gather.state_size, from = gather.source(at);
  gather.row_states[number] = from < 0 ? T(0.0f) : gather.states[from * gather.state_size + number % gather.state_size];
}

template <class T>
__global__ void __launch_bounds__(kNCacheThreads, 1) ncache_gather_kernel(NCacheGather<T> gather) {
  const int64_t number = static_cast<int64_t>(blockIdx.x) * kNCacheThreads + threadIdx.x;
  if (number >= gather.count() * gather.state_size) return;
  ncache_gather_state(gather, number);
  if (number % gather.state_size == 0) ncache_gather_slot(gather, number / gather.state_size);
}

template <class T>
__global__ void __launch_bounds__(kNCacheThreads, 1)
    ncache_read_kernel(NCacheGather<T> gather, NCacheRead<T> problem, int64_t tiles, T* z) {
  SharedMemory shared;
  NCacheTile<T> tile(problem, shared);
  const int64_t size = problem.state_size;
  for (int64_t number = blockIdx.x; number < tiles; number += gridDim.x) {
    const int64_t begin = number * kNCacheSlots;
    const int64_t end = begin + kNCacheSlots < problem.count ? begin + kNCacheSlots : problem.count;
    for (int64_t at = begin + tile.thread; at < end; at += kNCacheThreads) ncache_gather_slot(gather, at);
    for (int64_t at = begin * size + tile.thread; at < end * size; at += kNCacheThreads) {
      ncache_gather_state(gather, at);
      z[at] = T(0.0f);
    }
    tile.open(number);  // its barriers come between what is written here and below
    tile.for_each_state(
        [&](int64_t slot, int64_t which, const auto& gates) { z[slot * size + which] = T(gates.value()); });
  }
}

}  // namespace detail

/// ncache_gather_reference.
template <class T>
void ncache_gather_cuda(const NCacheGather<T>& gather, cudaStream_t stream) {
  const int64_t numbers = gather.count() * gather.state_size;
  if (numbers == 0) return;
  launch(detail::ncache_gather_kernel<T>,
         dim3(grid_of((numbers + detail::kNCacheThreads - 1) / detail::kNCacheThreads)), dim3(detail::kNCacheThreads),
         0, stream, gather);
}

/// ncache_gather_reference, and ncache_read_reference of its rows up to rounding: `problem` is that of the rows.
template <class T>
void ncache_read_cuda(const NCacheGather<T>& gather, const NCacheRead<T>& problem, T* z, cudaStream_t stream) {
  const int64_t tiles = detail::ncache_tiles(problem);
  if (tiles == 0) return;
  constexpr int64_t resident_blocks = 1056;  // eight for each of 132 multiprocessors: more would load weights again
  launch(detail::ncache_read_kernel<T>, dim3(static_cast<unsigned>(std::min(tiles, resident_blocks))),
         dim3(detail::kNCacheThreads), detail::ncache_read_shared(problem), stream, gather, problem, tiles, z);
}

}  // namespace anabranch
