// The stable sort behind every plan on the GPU: counting sort by 8-bit digits, least significant digit first.
//
// A pass sorts positions p in [0, n) by one digit of key_of(p); a negative key drops the position. Passes hand the
// order on as an array of positions (-1 past the end), so keys are never copied: a pass that needs them looks them up
// through the position. Up to 256 keys need one pass, 65536 two.
//
// One pass, tiles of 2048 positions, a warp walks 256 of them in steps of 32:
//   count    digits of a tile in shared memory -> counts[digit][tile]
//   scan     one warp per digit: exclusive sums over the tiles, and the digit's total
//   scatter  ranks within the warp by __match_any_sync, which keeps equal digits in order; then scan over the 8 warps,
//            the tiles before and the smaller digits; writes. The same blocks clear what lies past the last entry.
// With a single tile, as in decoding, the scatter alone is the whole sort: one launch.
// Bytes per pass: 2 (key + 4) n read, 4 to 8 n written; counts 1 KB per tile, three times. No atomics on global memory.
// Floor: those bytes; below some 100k positions, the time of three dependent launches.
#pragma once

#include <algorithm>
#include <cstdint>

#include "anabranch/core/simt.cuh"

namespace anabranch {

namespace detail {

inline constexpr int kSortThreads = 256;
inline constexpr int kSortWarps = kSortThreads / 32;
inline constexpr int kSortSteps = 8;
inline constexpr int kSortTile = kSortThreads * kSortSteps;
inline constexpr int kSortDigits = 256;
static_assert(kSortDigits == kSortThreads, "thread d looks after digit d");

/// What one pass sorts: positions order[0 .. n), or 0 .. n where order is null, by bits shift .. shift + 8 of the key.
struct SortPass {
  const int32_t* order;
  int64_t n;
  int64_t capacity;  // places; entries that sort behind it are dropped
  int num_tiles;
  int shift;
  int num_digits;  // digits lie in [0, num_digits), at most kSortDigits
};

template <class Keys>
__device__ int32_t digit_of(const Keys& key_of, int32_t position, int shift) {
  const int32_t key = position < 0 ? -1 : key_of(position);
  return key < 0 ? -1 : (key >> shift) & (kSortDigits - 1);
}

__device__ inline int32_t position_at(const SortPass& pass, int64_t i) {
  if (i >= pass.n) return -1;
  return pass.order ? pass.order[i] : static_cast<int32_t>(i);
}

template <class Count>
__device__ Count warp_inclusive_sum(Count value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int delta = 1; delta < 32; delta *= 2) {
    const Count before = __shfl_up_sync(kAllLanes, value, delta);
    if (lane >= delta) value += before;
  }
  return value;
}

/// Exclusive sum over the threads of the block, and the sum of all. warp_sums has kSortWarps elements, unused before.
__device__ inline int block_exclusive_sum(int value, const SharedArray<int>& warp_sums, int& total) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int inclusive = warp_inclusive_sum(value);
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  int before = 0;
  total = 0;
  for (int w = 0; w < kSortWarps; ++w) {
    const int sum = warp_sums[w];
    if (w < warp) before += sum;
    total += sum;
  }
  return before + inclusive - value;
}

template <class Keys>
__global__ void __launch_bounds__(kSortThreads) sort_count_kernel(SortPass pass, Keys key_of, int32_t* counts) {
  SharedMemory shared;
  const SharedArray<int> bins = shared.take<int>(kSortDigits);
  const int thread = static_cast<int>(threadIdx.x);
  bins[thread] = 0;
  __syncthreads();
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kSortTile;
  for (int step = 0; step < kSortSteps; ++step) {
    const int32_t position = position_at(pass, begin + step * kSortThreads + thread);
    const int32_t digit = digit_of(key_of, position, pass.shift);
    if (digit >= 0) atomicAdd(&bins[digit], 1);
  }
  __syncthreads();
  if (thread < pass.num_digits) counts[static_cast<int64_t>(thread) * pass.num_tiles + blockIdx.x] = bins[thread];
}

/// counts[d][0 .. num_tiles) becomes its exclusive sums, totals[d] the sum; warp d. A lane takes several neighbouring
/// tiles, so that many tiles cost few dependent steps.
template <class Count>
__global__ void __launch_bounds__(kSortThreads)
    sort_scan_kernel(Count* counts, Count* totals, int num_tiles, int num_digits) {
  constexpr int kTilesPerLane = 8;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int digit = static_cast<int>(blockIdx.x) * kSortWarps + static_cast<int>(threadIdx.x) / 32;
  if (digit >= num_digits) return;
  Count* row = counts + static_cast<int64_t>(digit) * num_tiles;
  Count before = 0;
  for (int first = 0; first < num_tiles; first += 32 * kTilesPerLane) {
    const int begin = first + lane * kTilesPerLane;
    Count count[kTilesPerLane], sum = 0;
#pragma unroll
    for (int i = 0; i < kTilesPerLane; ++i) {
      count[i] = begin + i < num_tiles ? row[begin + i] : 0;
      sum += count[i];
    }
    const Count inclusive = warp_inclusive_sum(sum);
    Count next = before + inclusive - sum;
#pragma unroll
    for (int i = 0; i < kTilesPerLane; ++i) {
      if (begin + i < num_tiles) row[begin + i] = next;
      next += count[i];
    }
    before += __shfl_sync(kAllLanes, inclusive, 31);
  }
  if (lane == 0) totals[digit] = before;
}

/// `counts` and `totals` as sort_scan_kernel leaves them; not read if there is a single tile. `offsets`, if not null,
/// receives where each digit begins, and the end. Three blocks per SM: left to itself, ptxas spills for a fourth.
template <class Keys, class Places>
__global__ void __launch_bounds__(kSortThreads, 3)
    sort_scatter_kernel(SortPass pass, Keys key_of, Places places, const int32_t* counts, const int32_t* totals,
                        int32_t* offsets) {
  SharedMemory shared;
  const SharedArray<int> starts = shared.take<int>(kSortWarps * kSortDigits);
  const SharedArray<int> warp_sums = shared.take<int>(kSortWarps);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  for (int w = 0; w < kSortWarps; ++w) starts[w * kSortDigits + thread] = 0;
  __syncthreads();

  // Each position's rank among equal digits of its warp.
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * kSortTile;
  int32_t position[kSortSteps], digit[kSortSteps], rank[kSortSteps];
#pragma unroll
  for (int step = 0; step < kSortSteps; ++step) {
    position[step] = position_at(pass, begin + (warp * kSortSteps + step) * 32 + lane);
    digit[step] = digit_of(key_of, position[step], pass.shift);
    const unsigned peers = __match_any_sync(kAllLanes, digit[step]);
    const int slot = warp * kSortDigits + digit[step];
    const int seen = digit[step] >= 0 ? starts[slot] : 0;
    rank[step] = seen + __popc(peers & ((1u << lane) - 1));
    __syncwarp();
    if (digit[step] >= 0 && lane == __ffs(static_cast<int>(peers)) - 1) starts[slot] = seen + __popc(peers);
    __syncwarp();
  }
  __syncthreads();

  // Thread d turns the counts of digit d into the places where each warp's first one goes.
  int tile_count = 0;
  for (int w = 0; w < kSortWarps; ++w) tile_count += starts[w * kSortDigits + thread];
  const bool single = pass.num_tiles == 1, counted = !single && thread < pass.num_digits;
  int kept;
  const int total = counted ? totals[thread] : single ? tile_count : 0;
  const int digit_begin = block_exclusive_sum(total, warp_sums, kept);
  int next = digit_begin + (counted ? counts[static_cast<int64_t>(thread) * pass.num_tiles + blockIdx.x] : 0);
  for (int w = 0; w < kSortWarps; ++w) {
    const int count = starts[w * kSortDigits + thread];
    starts[w * kSortDigits + thread] = next;
    next += count;
  }
  if (offsets && blockIdx.x == 0) {
    const int64_t last = kept < pass.capacity ? kept : pass.capacity;
    if (thread < pass.num_digits) offsets[thread] = static_cast<int32_t>(digit_begin < last ? digit_begin : last);
    if (thread == 0) offsets[pass.num_digits] = static_cast<int32_t>(last);
  }
  __syncthreads();

#pragma unroll
  for (int step = 0; step < kSortSteps; ++step) {
    if (digit[step] >= 0) {
      const int place = starts[warp * kSortDigits + digit[step]] + rank[step];
      if (place < pass.capacity) places.place(place, position[step]);
    }
    const int64_t i = begin + step * kSortThreads + thread;
    if (i >= kept && i < pass.capacity) places.clear(i);
  }
}

/// offsets[key] = the first place whose key is at least `key`, for keys 0 .. num_keys; sorted[place] is a position or
/// -1.
template <class Keys>
__global__ void sort_offsets_kernel(const int32_t* sorted, int64_t capacity, Keys key_of, int32_t* offsets,
                                    int64_t num_keys) {
  const int64_t key = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (key > num_keys) return;
  int64_t low = 0, high = capacity;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    const int32_t position = sorted[middle];
    if (position >= 0 && key_of(position) < key)
      low = middle + 1;
    else
      high = middle;
  }
  offsets[key] = static_cast<int32_t>(low);
}

/// Where a pass that is not the last puts its positions.
struct OrderPlaces {
  int32_t* order;
  __device__ void place(int64_t at, int32_t position) const { order[at] = position; }
  __device__ void clear(int64_t at) const { order[at] = -1; }
};

inline int sort_tiles(int64_t n, int64_t capacity) {
  return static_cast<int>(std::max<int64_t>(1, (std::max(n, capacity) + kSortTile - 1) / kSortTile));
}

inline int sort_passes(int64_t num_keys) {
  int passes = 1;
  while (num_keys > int64_t{1} << (8 * passes)) ++passes;
  return passes;
}

/// Scratch of a sort: tile counts, totals, and two orders that alternate as input and output.
class SortScratch {
 public:
  /// int32 elements that `passes` passes need.
  static int64_t size(int64_t n, int64_t capacity, int passes) {
    return int64_t{kSortDigits} * (sort_tiles(n, capacity) + 1) + std::min(passes - 1, 2) * n;
  }
  SortScratch(int32_t* data, int64_t n, int64_t capacity) : n_(n) {
    totals = data;
    counts = totals + kSortDigits;
    orders_ = counts + int64_t{kSortDigits} * sort_tiles(n, capacity);
  }
  /// The order that is free to be written.
  int32_t* next_order() {
    int32_t* order = orders_ + turn_ * n_;
    turn_ = 1 - turn_;
    return order;
  }

  int32_t* totals;
  int32_t* counts;

 private:
  int32_t* orders_;
  int64_t n_;
  int turn_ = 0;
};

/// One pass by digit `digit` of a key in [0, num_keys).
template <class Keys, class Places>
void sort_pass_cuda(int64_t n, const int32_t* order, const Keys& keys, int64_t num_keys, int digit, int64_t capacity,
                    const Places& places, int32_t* offsets, const SortScratch& scratch, cudaStream_t stream) {
  const int tiles = sort_tiles(n, capacity), shift = 8 * digit;
  const int64_t largest = num_keys > 0 ? (num_keys - 1) >> shift : -1;
  const int digits = static_cast<int>(std::min<int64_t>(largest + 1, kSortDigits));
  const SortPass pass{order, n, capacity, tiles, shift, digits};
  if (tiles > 1 && digits > 0) {
    launch(sort_count_kernel<Keys>, static_cast<unsigned>(tiles), kSortThreads, shared_bytes<int>(kSortDigits), stream,
           pass, keys, scratch.counts);
    launch(sort_scan_kernel<int32_t>, static_cast<unsigned>((digits + kSortWarps - 1) / kSortWarps), kSortThreads, 0,
           stream, scratch.counts, scratch.totals, tiles, digits);
  }
  launch(sort_scatter_kernel<Keys, Places>, static_cast<unsigned>(tiles), kSortThreads,
         shared_bytes<int, int>(kSortWarps * kSortDigits, kSortWarps), stream, pass, keys, places, scratch.counts,
         scratch.totals, offsets);
}

/// The first `passes` passes over a key in [0, num_keys); returns the order they leave (`order` if there is none).
template <class Keys>
const int32_t* sort_lower_digits_cuda(int64_t n, const int32_t* order, const Keys& keys, int64_t num_keys, int passes,
                                      SortScratch& scratch, cudaStream_t stream) {
  for (int digit = 0; digit < passes; ++digit) {
    int32_t* sorted = scratch.next_order();
    sort_pass_cuda(n, order, keys, num_keys, digit, n, OrderPlaces{sorted}, nullptr, scratch, stream);
    order = sorted;
  }
  return order;
}

/// Sorts positions by key in [0, num_keys) into `places`; `sorted` is where places puts them, offsets has num_keys + 1.
template <class Keys, class Places>
void sort_by_key_cuda(int64_t n, const int32_t* order, const Keys& keys, int64_t num_keys, int64_t capacity,
                      const Places& places, const int32_t* sorted, int32_t* offsets, SortScratch& scratch,
                      cudaStream_t stream) {
  const int passes = sort_passes(num_keys);
  order = sort_lower_digits_cuda(n, order, keys, num_keys, passes - 1, scratch, stream);
  sort_pass_cuda(n, order, keys, num_keys, passes - 1, capacity, places, passes == 1 ? offsets : nullptr, scratch,
                 stream);
  if (passes == 1) return;
  launch(sort_offsets_kernel<Keys>, static_cast<unsigned>(num_keys / 256 + 1), 256, 0, stream, sorted, capacity, keys,
         offsets, num_keys);
}

}  // namespace detail

}  // namespace anabranch
