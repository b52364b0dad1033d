// Rows in pieces of 16 bytes: the widest access of one thread, and how a block shares out rows and columns.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "anabranch/core/scalar.hpp"
#include "anabranch/core/simt.cuh"

namespace anabranch {

/// N neighbouring elements, loaded and stored as one access. N is 16 / sizeof(T), or 1 where rows are not aligned.
template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T values[N];

  __device__ static Vector load(const T* from) { return *reinterpret_cast<const Vector*>(from); }
  __device__ void store(T* to) const { *reinterpret_cast<Vector*>(to) = *this; }
};

template <class T>
inline constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

/// True where every row of `width` elements of T that starts at one of the pointers is aligned to 16 bytes.
template <class T>
bool rows_are_aligned(int64_t width, std::initializer_list<const void*> pointers) {
  return width % kVectorWidth<T> == 0 && std::all_of(pointers.begin(), pointers.end(), [](const void* pointer) {
           return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
         });
}

/// Calls f.template operator()<N>() with the widest N that the rows allow.
template <class T, class F>
void dispatch_vector_width(int64_t width, std::initializer_list<const void*> pointers, F&& f) {
  rows_are_aligned<T>(width, pointers) ? f.template operator()<kVectorWidth<T>>() : f.template operator()<1>();
}

/// The sum over a warp's lanes, in all of them, by a fixed tree. All lanes call it.
template <class Value>
__device__ Value warp_sum(Value value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

/// A block of 256 threads over rows (y) and the pieces of a row (x): a thread takes every x-th piece of its row, so
/// wide rows give it several independent accesses in flight and narrow rows leave no thread without work.
inline dim3 row_block(int64_t pieces, unsigned max_x = 64) {
  const auto x = std::bit_floor(static_cast<unsigned>(std::clamp<int64_t>(pieces, 1, max_x)));
  return dim3(x, 256 / x);
}

/// Blocks of a one-dimensional grid; throws std::invalid_argument where CUDA could not number them.
inline unsigned grid_of(int64_t blocks) {
  if (blocks > INT32_MAX) {
    throw std::invalid_argument("anabranch: a kernel would need " + std::to_string(blocks) +
                                " blocks, must be at most 2^31 - 1; pass fewer rows or groups at a time");
  }
  return static_cast<unsigned>(blocks);
}

inline dim3 row_grid(int64_t rows, dim3 block) { return dim3(static_cast<unsigned>((rows + block.y - 1) / block.y)); }

}  // namespace anabranch
