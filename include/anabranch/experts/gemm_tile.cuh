// One 64 x 64 tile of a product by one block: the arithmetic of every portable kernel of the experts room.
//
//   tile(i, j) = sum over p < k of left(i, p) * right(j, p)
//
// Both operands are sets of lines along the summed index: rows of A and columns of B, with any strides. A line may be
// chosen by an id (a gather), lines may alternate between two halves (gate and up features side by side), and the
// summed index itself may go through ids (a sum over routed rows). Forward, dgrad and wgrad are thus one function.
//
// 256 threads; 16 steps of p at a time lie in shared memory as Sum = accumulate_t<T>, [p][line] with 4 elements of
// padding; a thread keeps 4 x 4 sums and reads 16 bytes at a time. The next 16 steps are loaded into registers while
// the present ones are multiplied. Loads run along whichever index has the smaller stride. Sums are in order of p.
// FLOPs: 2 * 64 * 64 * k however few lines exist. Shared memory: 16 KB in float, 32 KB in double, reused for the
// result. Floor: 64 * 64 * k fused multiply-adds on the CUDA cores; tensor cores are for the *_sm90.cuh kernels.
#pragma once

#include <cstdint>

#include "anabranch/core/scalar.hpp"
#include "anabranch/core/vector.cuh"

namespace anabranch::detail {

inline constexpr int kGemmTile = 64;
inline constexpr int kGemmThreads = 256;
inline constexpr int kGemmSteps = 16;
/// Blocks that share a multiprocessor at least: said to the compiler, it neither spills for a third nor wastes one.
template <class T>
inline constexpr int kGemmBlocks = sizeof(T) == 8 ? 1 : 2;
inline constexpr int kGemmLine = kGemmTile + 4;

/// Element p of line l lies at data + l * line_stride + p * k_stride.
template <class T>
struct GemmLines {
  const T* data;
  int64_t line_stride, k_stride;
  const int32_t* line_ids = nullptr;  // if given, line l is number line_ids[l]
  int64_t num_ids = 0;                // ids outside [0, num_ids) stand for zeros
  bool paired = false;                // line l is number l / 2 of half l % 2
  int64_t pair_stride = 0;

  /// Where element p of line l is, or null.
  __device__ const T* locate(int64_t l, int p) const {
    if (line_ids) {
      l = line_ids[l];
      if (l < 0 || l >= num_ids) return nullptr;
    }
    return data + (paired ? (l >> 1) * line_stride + (l & 1) * pair_stride : l * line_stride) + p * k_stride;
  }
  /// Element begin + p, from a place that `step` has moved by begin elements.
  __device__ T element(const T* place, int64_t, int) const { return *place; }
  __device__ int64_t step() const { return kGemmSteps * k_stride; }
  /// The same lines, moved by elements.
  __device__ GemmLines moved(int64_t elements) const {
    GemmLines lines = *this;
    lines.data += elements;
    return lines;
  }
};

/// Lines along routed rows: element p of line l lies at data + l * line_stride + (k_ids ? k_ids[p] : p) * k_stride.
template <class T>
struct GemmColumns {
  const T* data;
  int64_t line_stride, k_stride;
  const int32_t* k_ids = nullptr;
  int64_t num_ids = 0;  // ids outside [0, num_ids) stand for zeros

  __device__ const T* locate(int64_t l, int p) const { return data + l * line_stride + (k_ids ? 0 : p * k_stride); }
  __device__ T element(const T* place, int64_t begin, int p) const {
    if (!k_ids) return *place;
    const int64_t id = k_ids[begin + p];
    return id >= 0 && id < num_ids ? place[id * k_stride] : T(0.0f);
  }
  __device__ int64_t step() const { return k_ids ? 0 : kGemmSteps * k_stride; }
  /// The same lines, moved by elements, from element p on.
  __device__ GemmColumns from(int64_t elements, int64_t p) const {
    GemmColumns lines = *this;
    lines.data += elements + (k_ids ? 0 : p * k_stride);
    if (k_ids) lines.k_ids += p;
    return lines;
  }
};

/// A thread's share of the loads of 64 lines x 16 steps: four elements, neighbours in a warp along the smaller stride.
template <class T, class Lines>
class GemmLoader {
 public:
  __device__ GemmLoader(const Lines& lines, int64_t first, int count, int64_t k) : lines_(lines), k_(k) {
    const int thread = static_cast<int>(threadIdx.x);
    const bool along_k = magnitude(lines.k_stride) <= magnitude(lines.line_stride);
    line_ = along_k ? thread / kGemmSteps : thread % kGemmTile;
    line_step_ = along_k ? kGemmThreads / kGemmSteps : 0;
    step_ = along_k ? thread % kGemmSteps : thread / kGemmTile;
    step_step_ = along_k ? 0 : kGemmThreads / kGemmTile;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int line = line_ + i * line_step_;
      places_[i] = line < count ? lines.locate(first + line, step_ + i * step_step_) : nullptr;
      present_ |= static_cast<unsigned>(places_[i] != nullptr) << i;
    }
  }
  /// Elements begin .. begin + 16 of the lines; begin is 16 more at each call.
  __device__ void fetch(int64_t begin) {
    const int left = static_cast<int>(k_ - begin < kGemmSteps ? k_ - begin : kGemmSteps);
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      const int p = step_ + i * step_step_;
      const bool exists = (present_ >> i & 1) && p < left;
      values_[i] = exists ? lines_.element(places_[i], begin, p) : T(0.0f);
      places_[i] += lines_.step();
    }
  }
  __device__ void put(const SharedArray<accumulate_t<T>>& tile) const {
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      tile[(step_ + i * step_step_) * kGemmLine + line_ + i * line_step_] = static_cast<accumulate_t<T>>(values_[i]);
    }
  }

 private:
  static constexpr int kElements = kGemmTile * kGemmSteps / kGemmThreads;
  __device__ static int64_t magnitude(int64_t stride) { return stride < 0 ? -stride : stride; }

  const Lines& lines_;
  int64_t k_;
  int line_, line_step_, step_, step_step_;
  unsigned present_ = 0;
  const T* places_[kElements];
  T values_[kElements];
};

/// One tile of sums, spread over the threads of a block; every thread of the block calls every method.
template <class T>
class GemmTile {
 public:
  using Sum = accumulate_t<T>;
  static constexpr int kPiece = kVectorWidth<Sum>;  // sums in 16 bytes
  using Piece = Vector<Sum, kPiece>;

  static size_t shared_size() {
    const size_t operands = shared_bytes<Sum, Sum>(kGemmSteps * kGemmLine, kGemmSteps * kGemmLine);
    return std::max(operands, shared_bytes<Sum>(kGemmTile * kGemmTile));
  }

  /// Adds the product of `left_count` and `right_count` lines, at most 64, over k elements.
  template <class Lines>
  __device__ void add(const Lines& left, int64_t left_first, int left_count, const Lines& right, int64_t right_first,
                      int right_count, int64_t k) {
    SharedMemory written, read;
    const SharedArray<Sum> put_left = written.take<Sum>(kGemmSteps * kGemmLine);
    const SharedArray<Sum> put_right = written.take<Sum>(kGemmSteps * kGemmLine);
    const SharedArray<Piece> get_left = read.take<Piece>(kGemmSteps * kGemmLine / kPiece);
    const SharedArray<Piece> get_right = read.take<Piece>(kGemmSteps * kGemmLine / kPiece);
    GemmLoader<T, Lines> left_loader(left, left_first, left_count, k);
    GemmLoader<T, Lines> right_loader(right, right_first, right_count, k);
    left_loader.fetch(0);
    right_loader.fetch(0);
    for (int64_t begin = 0; begin < k; begin += kGemmSteps) {
      left_loader.put(put_left);
      right_loader.put(put_right);
      __syncthreads();
      if (begin + kGemmSteps < k) {
        left_loader.fetch(begin + kGemmSteps);
        right_loader.fetch(begin + kGemmSteps);
      }
#pragma unroll 2
      for (int p = 0; p < kGemmSteps; ++p) {
        Sum rows[4], columns[4];
        take_four(get_left, p * kGemmLine + first_row(), rows);
        take_four(get_right, p * kGemmLine + first_column(), columns);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
#pragma unroll
          for (int j = 0; j < 4; ++j) sums_[i][j] += rows[i] * columns[j];
        }
      }
      __syncthreads();
    }
  }

  /// The sums in shared memory, [row * 64 + column], for all threads to read.
  __device__ SharedArray<Sum> share() const {
    SharedMemory written, read;
    const SharedArray<Piece> put = written.take<Piece>(kGemmTile * kGemmTile / kPiece);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; j += kPiece) {
        Piece piece;
        for (int l = 0; l < kPiece; ++l) piece.values[l] = sums_[i][j + l];
        put[((first_row() + i) * kGemmTile + first_column() + j) / kPiece] = piece;
      }
    }
    __syncthreads();
    return read.take<Sum>(kGemmTile * kGemmTile);
  }

 private:
  __device__ static int first_row() { return static_cast<int>(threadIdx.x) / 16 * 4; }
  __device__ static int first_column() { return static_cast<int>(threadIdx.x) % 16 * 4; }
  __device__ static void take_four(const SharedArray<Piece>& tile, int at, Sum (&values)[4]) {
#pragma unroll
    for (int j = 0; j < 4; j += kPiece) {
      const Piece piece = tile[(at + j) / kPiece];
      for (int l = 0; l < kPiece; ++l) values[j + l] = piece.values[l];
    }
  }

  Sum sums_[4][4] = {};
};

/// Calls f(row, lane) for the rows of a shared tile below `count`, a warp per row; all lanes of a warp make each call.
template <class F>
__device__ void for_each_tile_row(int count, F&& f) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < count; row += kGemmThreads / 32) f(row, lane);
}

}  // namespace anabranch::detail
