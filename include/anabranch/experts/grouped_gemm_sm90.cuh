// The main loop of every Hopper kernel of the experts room: persistent blocks, a warpgroup that loads, others that
// multiply.
//
// A block takes tiles blockIdx.x, + gridDim.x, ...; of each it computes kRows x 256 sums over depth_blocks x 64 of k.
// Warpgroup 0 fills a ring of stages, each A [kRows x 64] and B [256 x 64]; every other warpgroup multiplies 64 rows.
// What a tile is, where its operands come from and what becomes of its sums is the Problem's:
//
//   num_tiles(), tile(index)           Tile has rows, of which a warpgroup without any multiplies nothing, and
//                                      depth_blocks, which may be 0: its sums are zeros
//   kAMnMajor, kBMnMajor               layout of the operands in a stage (core/wgmma.cuh)
//   kBoxes, box_bytes, load_boxes      what TMA brings, asked for by one thread, if anything
//   kThreadsLoad, RowLoader            what the 128 threads of warpgroup 0 bring by cp.async: rows found by id
//   store(tile, sums, thread)          the 64 rows of one warpgroup; thread is 0 .. 127 plus 128 for each before it
//
// cp.async groups are waited for kStages - 3 stages later than they are started. A lag of kStages - 2 works too, but
// then a stage is shown to the consumers only when they have given back the one before it; the spare stage lets one
// consumer run ahead of the other, so that one multiplies while the other stores. kStages - 1 would leave both sides
// waiting: a stage is given back one block after it was read.
//
// Shared memory: kRows = 128: 4 stages x 48 KiB = 192 KiB; kRows = 64: 5 x 40 KiB = 200 KiB; plus 1 KiB to align.
// Registers: 128 of a consumer's are sums. kRows = 128: 56 for loading, 224 for multiplying (56 * 128 + 224 * 256 =
// 64512 of 65536); kRows = 64: 255 for all (256 threads), nothing to move.
// FLOPs: 2 * 64 * kRows * 256 per depth block. Bytes from L2 per depth block: one stage; kRows = 128 moves 48 KiB per
// 4.2 MFLOP, 39 bytes per clock and multiprocessor at the tensor cores' full speed. Floor: FLOPs / peak, or bytes of
// the touched matrices / bandwidth.
#pragma once

#include "anabranch/core/cp_async.cuh"
#include "anabranch/core/tma.cuh"
#include "anabranch/core/wgmma.cuh"

namespace anabranch::detail {

template <int kRows_, int kStages_>
struct Sm90Shape {
  static constexpr int kRows = kRows_, kColumns = 256, kDepth = 64, kStages = kStages_;
  static constexpr int kConsumers = kRows / 64, kThreads = 128 + 128 * kConsumers;
  static constexpr int kBytesA = kRows * 128, kBytesB = kColumns * 128, kStageBytes = kBytesA + kBytesB;
  static constexpr int kPieces = (kStages * kStageBytes + kSwizzlePeriod) / 16;
  static constexpr size_t kSharedBytes = shared_bytes<uint64_t, uint4>(2 * kStages, kPieces);
  static_assert(kSharedBytes <= 227 * 1024 && kStages >= 4);
};

/// 128-row tiles for experts with many rows, 64-row ones where half of a taller tile would be padding.
using Sm90Tall = Sm90Shape<128, 4>;
using Sm90Flat = Sm90Shape<64, 5>;

inline constexpr int kBlockBytes = 64 * 128;  // 64 lines: a consumer's part of A, and 64 columns of an N-major B

/// A place in the ring, and which round it is.
template <class Shape>
struct RingPosition {
  int stage = 0;
  uint32_t round = 0;
  __device__ void advance() {
    if (++stage == Shape::kStages) stage = 0, round ^= 1;
  }
};

template <class Shape>
struct Ring {
  SharedAddress barriers, stages;
  using Position = RingPosition<Shape>;

  __device__ SharedAddress full(Position at) const { return barriers + 8 * at.stage; }
  __device__ SharedAddress empty(Position at) const { return barriers + 8 * (Shape::kStages + at.stage); }
  __device__ SharedAddress a(Position at) const { return stages + at.stage * Shape::kStageBytes; }
  __device__ SharedAddress b(Position at) const { return a(at) + Shape::kBytesA; }

  /// Producer: until consumers have given the stage back. Consumer: until it is filled.
  __device__ void wait_empty(Position at) const { mbarrier_wait(empty(at), at.round ^ 1); }
  __device__ void wait_full(Position at) const { mbarrier_wait(full(at), at.round); }
};

/// A block's i-th tile, and how many it has.
__device__ inline int64_t own_tile(int i) { return blockIdx.x + int64_t{i} * gridDim.x; }
__device__ inline int own_tiles(int64_t num_tiles) {
  return static_cast<int>((num_tiles - blockIdx.x + gridDim.x - 1) / gridDim.x);
}

/// Warpgroup 0 where TMA brings everything: one thread asks.
template <class Problem>
__device__ void request_tiles(const Problem& problem, const Ring<typename Problem::Shape>& ring) {
  RingPosition<typename Problem::Shape> at;
  const int num_tiles = own_tiles(problem.num_tiles());
  for (int i = 0; i < num_tiles; ++i) {
    const auto tile = problem.tile(own_tile(i));
    for (int block = 0; block < tile.depth_blocks; ++block, at.advance()) {
      ring.wait_empty(at);
      mbarrier_arrive_expecting(ring.full(at), problem.box_bytes(tile));
      problem.load_boxes(tile, block, ring.a(at), ring.b(at), ring.full(at));
    }
  }
}

/// Warpgroup 0 where its threads copy rows, and one of them asks TMA for the rest.
template <class Problem>
__device__ void copy_tiles(const Problem& problem, const Ring<typename Problem::Shape>& ring) {
  constexpr int kLag = Problem::Shape::kStages - 3;
  RingPosition<typename Problem::Shape> at, arrived;
  const int thread = static_cast<int>(threadIdx.x);
  // The oldest group of copies has ended: shows it to wgmma and to the consumers.
  const auto publish = [&] {
    fence_proxy_async();
    __syncwarp();
    if (thread % 32 == 0) mbarrier_arrive(ring.full(arrived));
    arrived.advance();
  };
  int under_way = 0;
  const int num_tiles = own_tiles(problem.num_tiles());
  for (int i = 0; i < num_tiles; ++i) {
    const auto tile = problem.tile(own_tile(i));
    typename Problem::RowLoader loader(problem, tile, thread);
    for (int block = 0; block < tile.depth_blocks; ++block, at.advance()) {
      ring.wait_empty(at);
      if constexpr (Problem::kBoxes) {
        if (thread == 0) {
          mbarrier_arrive_expecting(ring.full(at), problem.box_bytes(tile));
          problem.load_boxes(tile, block, ring.a(at), ring.b(at), ring.full(at));
        }
      }
      loader.copy(problem, tile, block, ring.a(at), ring.b(at));
      cp_async_commit();
      if (under_way == kLag) {
        cp_async_wait<kLag>();
        publish();
      } else {
        ++under_way;
      }
    }
  }
  cp_async_wait<0>();
  for (; under_way > 0; --under_way) publish();
}

/// The other warpgroups. thread: 0 .. 127 in the first, 128 .. in the second.
template <class Problem>
__device__ void multiply_tiles(const Problem& problem, const Ring<typename Problem::Shape>& ring, int thread) {
  using Shape = typename Problem::Shape;
  using T = typename Problem::Element;
  constexpr bool kAMn = Problem::kAMnMajor, kBMn = Problem::kBMnMajor;
  const SharedAddress own_rows = thread / 128 * kBlockBytes;
  RingPosition<Shape> at;
  float sums[Shape::kColumns / 2];
  const auto multiply_block = [&] {
    ring.wait_full(at);
    const uint64_t a = wgmma_tile(ring.a(at) + own_rows, kAMn, kBlockBytes);
    const uint64_t b = wgmma_tile(ring.b(at), kBMn, kBlockBytes);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < Shape::kDepth / 16; ++step) {
      wgmma<T, Shape::kColumns, kAMn, kBMn>(sums, a + step * wgmma_step(kAMn), b + step * wgmma_step(kBMn), true);
    }
    wgmma_commit();
  };
  const auto give_back = [&](SharedAddress empty) {
    if (thread % 32 == 0) mbarrier_arrive(empty);
  };
  // The same in all lanes, and the shuffles let the compiler know: wgmma stands in no divergent code.
  const int first_row = __shfl_sync(kAllLanes, thread / 128 * 64, 0);
  const int num_tiles = own_tiles(problem.num_tiles());
  typename Problem::Tile tile{}, next{};
  if (num_tiles > 0) tile = problem.tile(own_tile(0));
  for (int i = 0; i < num_tiles; ++i, tile = next) {
    // Finding a tile is a chain of dependent loads: it runs beside the first products of the one before.
    const auto find_next = [&] {
      if (i + 1 < num_tiles) next = problem.tile(own_tile(i + 1));
    };
    const int depth_blocks = __shfl_sync(kAllLanes, tile.depth_blocks, 0);
    if (__shfl_sync(kAllLanes, tile.rows, 0) <= first_row) {
      find_next();
      for (int block = 0; block < depth_blocks; ++block, at.advance()) {
        ring.wait_full(at);
        __syncwarp();  // a lane that has not seen the phase must not find the next but one in its place
        give_back(ring.empty(at));
      }
      continue;
    }
    for (float& sum : sums) sum = 0.0f;
    pin_sums(sums);
    if (depth_blocks > 0) {
      SharedAddress previous = 0;
      int block = 0;
      do {
        multiply_block();
        if (block == 0) find_next();
        wgmma_wait<1>();  // the block before this one
        if (block > 0) give_back(previous);
        previous = ring.empty(at);
        at.advance();
      } while (++block < depth_blocks);
      wgmma_wait<0>();
      pin_sums(sums);
      give_back(previous);
    } else {
      find_next();
    }
    problem.store(tile, sums, thread);
  }
}

template <class Problem>
__global__ void __launch_bounds__(Problem::Shape::kThreads, 1)
    grouped_gemm_sm90_kernel(const __grid_constant__ Problem problem) {
  using Shape = typename Problem::Shape;
  SharedMemory shared;
  const SharedArray<uint64_t> barriers = shared.take<uint64_t>(2 * Shape::kStages);
  const SharedArray<uint4> memory = shared.take<uint4>(Shape::kPieces);
  const Ring<Shape> ring{shared_address(&barriers[0]), align_up(shared_address(&memory[0]), kSwizzlePeriod)};
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    constexpr int kLoaders = (Problem::kThreadsLoad ? 4 : 0) + (Problem::kBoxes ? 1 : 0);
    for (RingPosition<Shape> at; at.round == 0; at.advance()) {
      mbarrier_init(ring.full(at), kLoaders);
      mbarrier_init(ring.empty(at), 4 * Shape::kConsumers);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  constexpr bool kMovesRegisters = Shape::kConsumers == 2;
  if (__shfl_sync(kAllLanes, thread / 128, 0) == 0) {
    if constexpr (kMovesRegisters) release_registers<56>();
    if constexpr (Problem::kThreadsLoad) {
      copy_tiles(problem, ring);
    } else if (thread == 0) {
      request_tiles(problem, ring);
    }
  } else {
    if constexpr (kMovesRegisters) take_registers<224>();
    multiply_tiles(problem, ring, thread - 128);
  }
}

/// One block per multiprocessor, or fewer where there are fewer tiles than `most_tiles`.
template <class Problem>
void launch_grouped_gemm_sm90(const Problem& problem, int64_t most_tiles, int multiprocessors, cudaStream_t stream) {
  if (most_tiles <= 0) return;
  using Shape = typename Problem::Shape;
  const auto blocks = static_cast<unsigned>(most_tiles < multiprocessors ? most_tiles : multiprocessors);
  launch(grouped_gemm_sm90_kernel<Problem>, blocks, Shape::kThreads, Shape::kSharedBytes, stream, problem);
}

}  // namespace anabranch::detail
