// Vectors of 16 bytes in the compiler's own vector type: SSE2, NEON or whatever the target's baseline has.
//
// What every `Lanes` offers, and the GEMM templates use:
//   Packed      element of a packed panel; it holds `group` consecutive k
//   Vector      `width` of them; SumVector: `width` sums
//   rows, vectors   the register tile: rows x (vectors * width) sums
//   packed_rows, packed_vectors  that of a B packed beforehand: taller, so that B is read once for as many rows as fit
//   load_input(pointer[, count])  `width * group` (or fewer, then zeros) inputs of any T, consecutive in memory
//   load_across(pointers, count, low, high)  the same for 2 * width columns of `group` rows: two vectors
//   in_register(v)  v, loaded once however often it is used: GCC would repeat the load in every multiply_add
//   transpose(v)  turns `width` Vectors, one per row, into one per column
// Only code that is inlined by force or named after the instruction set may live here: the linker merges equal names
// from translation units with different flags, and an old processor would meet instructions that it does not have.
#pragma once

#include <cstdint>

#include "anabranch/core/scalar.hpp"

namespace anabranch::portable {

template <class Real>
struct Lanes {
  using Packed = Real;
  using Sum = Real;
  static constexpr int width = 16 / sizeof(Real);
  static constexpr int group = 1;
  static constexpr int rows = width < 4 ? width : 4;
  static constexpr int vectors = 2;
  static constexpr int packed_rows = rows;
  static constexpr int packed_vectors = 2;
  typedef Real Vector __attribute__((vector_size(16)));
  using SumVector = Vector;

  template <class T>
  static Packed convert(const T* value) {
    return static_cast<Packed>(value[0]);
  }

  static SumVector zero() { return SumVector{}; }
  static Vector load(const Packed* from) {
    Vector v;
    __builtin_memcpy(&v, from, sizeof(v));
    return v;
  }
  static void store(Packed* to, Vector v) { __builtin_memcpy(to, &v, sizeof(v)); }
  static Vector broadcast(const Packed* from) { return Vector{} + from[0]; }

  template <class T>
  static Vector load_input(const T* from) {
    Vector v;
    for (int i = 0; i < width; ++i) v[i] = static_cast<Real>(from[i]);
    return v;
  }
  template <class T>
  static Vector load_input(const T* from, int64_t count) {
    Vector v{};
    for (int i = 0; i < width; ++i)
      if (i < count) v[i] = static_cast<Real>(from[i]);
    return v;
  }
  template <class T>
  static void load_across(const T* const (&from)[1], int64_t count, Vector& low, Vector& high) {
    low = count >= width ? load_input(from[0]) : load_input(from[0], count);
    high = count >= 2 * width ? load_input(from[0] + width) : load_input(from[0] + width, count - width);
  }

  static Vector in_register(Vector v) { return v; }
  static SumVector multiply_add(Vector a, Vector b, SumVector sum) { return sum + a * b; }
  static SumVector add(SumVector a, SumVector b) { return a + b; }
  static SumVector load_sum(const Sum* from) { return load(from); }
  static SumVector load_sum(const Sum* from, int64_t count) { return load_input(from, count); }
  static void store_sum(Sum* to, SumVector v) { store(to, v); }
  static void store_sum(Sum* to, SumVector v, int64_t count) {
    for (int i = 0; i < width; ++i)
      if (i < count) to[i] = v[i];
  }
  static Sum reduce(SumVector v) {
    Sum sum = 0;
    for (int i = 0; i < width; ++i) sum += v[i];
    return sum;
  }

  static void transpose(Vector (&v)[width]) {
    for (int i = 0; i < width; ++i) {
      for (int j = 0; j < i; ++j) {
        const Real swap = v[i][j];
        v[i][j] = v[j][i];
        v[j][i] = swap;
      }
    }
  }
};

using FloatLanes = Lanes<float>;
using DoubleLanes = Lanes<double>;

}  // namespace anabranch::portable
