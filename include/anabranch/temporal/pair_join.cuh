// The join of pairs of slot sets (pair_join.hpp defines it) on the GPU: a block of 128 threads for a pair, which it
// joins in shared memory (pair_on_chip.cuh).
//
// Bytes: the definition's, each number once; floor: bytes / bandwidth. The backward finds the positions of all slots
// (4 bytes a slot, written), then a warp for each row walks the pairs, 64 row numbers at a time from the second cache,
// and adds in their order: rows * pairs / 16 loads of a lane, less than a sort's launches up to some thousands of each.
#pragma once

#include "anabranch/temporal/pair_on_chip.cuh"

namespace anabranch {

namespace detail {

template <class T>
__global__ void __launch_bounds__(kPairThreads, 1)
    pair_join_kernel(SlotPairs<T> problem, int places, int64_t* keys, int32_t* codes, T* z, int32_t* counts) {
  SharedMemory shared;
  const int slots = static_cast<int>(problem.slots), thread = static_cast<int>(threadIdx.x), width = 2 * slots;
  PairOnChip pair(shared, slots, places);
  const int64_t p = blockIdx.x;
  pair.join(problem, p);
  if (thread == 0) counts[p] = pair.count();
  for (int j = thread; j < width; j += kPairThreads) {
    keys[p * width + j] = j < pair.count() ? pair.key(j) : -1;
    codes[p * width + j] = j < pair.count() ? pair.code(problem, j) : 0;
  }
  for (int64_t i = thread; i < width * problem.features; i += kPairThreads) {
    const int joined = static_cast<int>(i / problem.features);
    z[p * width * problem.features + i] =
        joined < pair.count() ? T(pair.z(problem, p, joined, i % problem.features)) : T(0.0f);
  }
}

template <class T>
__global__ void __launch_bounds__(kPairThreads, 1)
    pair_positions_kernel(SlotPairs<T> problem, int places, int32_t* positions) {
  SharedMemory shared;
  const int slots = static_cast<int>(problem.slots);
  PairOnChip pair(shared, slots, places);
  pair.join(problem, blockIdx.x);
  for (int i = static_cast<int>(threadIdx.x); i < 2 * slots; i += kPairThreads) {
    positions[static_cast<int64_t>(blockIdx.x) * 2 * slots + i] = pair.position(i);
  }
}

/// A warp for each row: what its slots get from gradient [pairs, 2 slots, features], given for joined keys.
template <class T, class G>
__global__ void __launch_bounds__(kPairThreads, 1)
    slot_gradients_kernel(SlotPairs<T> problem, const int32_t* positions, const G* gradient, T* dz) {
  using Sum = accumulate_t<T>;
  constexpr int kNumbers = 8;  // of a lane at a time: one walk for 256 numbers of a row
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * (kPairThreads / 32) + threadIdx.x / 32;
  if (row >= problem.rows) return;
  const int64_t numbers = problem.slots * problem.features, width = 2 * problem.slots;
  for (int64_t first = lane; first - lane < numbers; first += 32 * kNumbers) {
    Sum sums[kNumbers] = {};
    const auto add = [&](int64_t p, int side) {
#pragma unroll
      for (int k = 0; k < kNumbers; ++k) {
        const int64_t number = first + 32 * k;
        if (number >= numbers) continue;
        const int32_t position = positions[p * width + side * problem.slots + number / problem.features];
        if (position < 0) continue;
        sums[k] += static_cast<Sum>(gradient[(p * width + position) * problem.features + number % problem.features]);
      }
    };
    for (int64_t base = 0; base < problem.pairs; base += 32) {
      const int64_t p = base + lane;
      const unsigned left = __ballot_sync(kAllLanes, p < problem.pairs && problem.left[p] == row);
      const unsigned right = __ballot_sync(kAllLanes, p < problem.pairs && problem.right[p] == row);
      for (unsigned rest = left | right; rest != 0; rest &= rest - 1) {
        const int found = __ffs(static_cast<int>(rest)) - 1;
        if (left >> found & 1) add(base + found, 0);
        if (right >> found & 1) add(base + found, 1);
      }
    }
#pragma unroll
    for (int k = 0; k < kNumbers; ++k) {
      if (first + 32 * k < numbers) dz[row * numbers + first + 32 * k] = T(sums[k]);
    }
  }
}

template <class T, class G>
void slot_gradients_cuda(const SlotPairs<T>& problem, const int32_t* positions, const G* gradient, T* dz,
                         cudaStream_t stream) {
  if (problem.rows * problem.slots * problem.features == 0) return;
  constexpr int64_t rows = kPairThreads / 32;
  launch(slot_gradients_kernel<T, G>, grid_of((problem.rows + rows - 1) / rows), kPairThreads, 0, stream, problem,
         positions, gradient, dz);
}

}  // namespace detail

/// pair_join_reference, to the bit.
template <class T>
void pair_join_cuda(const SlotPairs<T>& problem, int64_t* keys, int32_t* codes, T* z, int32_t* counts,
                    cudaStream_t stream) {
  if (problem.pairs == 0) return;
  launch(detail::pair_join_kernel<T>, grid_of(problem.pairs), detail::kPairThreads,
         detail::pair_shared_bytes(problem.slots), stream, problem, detail::pair_table_places(problem.slots), keys,
         codes, z, counts);
}

/// pair_join_backward_reference, to the bit. scratch has pairs * 2 slots numbers.
template <class T>
void pair_join_backward_cuda(const SlotPairs<T>& problem, const T* dz_joined, T* dz, int32_t* scratch,
                             cudaStream_t stream) {
  if (problem.pairs > 0) {
    launch(detail::pair_positions_kernel<T>, grid_of(problem.pairs), detail::kPairThreads,
           detail::pair_shared_bytes(problem.slots), stream, problem, detail::pair_table_places(problem.slots),
           scratch);
  }
  detail::slot_gradients_cuda<T>(problem, scratch, dz_joined, dz, stream);
}

}  // namespace anabranch
