// What a caller needs of the Hopper grouped products: which problems they take, and their two functions, instantiated
// for bfloat16 and half in csrc/experts/grouped_mm_*_sm90.cu. They read nothing back from the device.
#pragma once

#include "anabranch/core/simt.cuh"
#include "anabranch/experts/grouped_mm.hpp"

namespace anabranch {

namespace detail {

template <class T>
inline constexpr bool is_16_bit = std::is_same_v<T, bfloat16> || std::is_same_v<T, half>;

/// True where 16-byte copies find every row: the address and all strides are positive multiples of 8 elements.
template <class T>
bool in_eights(const T* data, auto... strides) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && ((strides > 0 && strides % 8 == 0) && ...);
}

}  // namespace detail

/// x contiguous along k, w along k or n, everything in multiples of 8 elements, nothing empty.
template <class T>
bool grouped_mm_sm90_takes(const GroupedMm<T>& p) {
  const bool n_major = p.w.column_stride == 1;
  return detail::is_16_bit<T> && p.num_groups > 0 && p.num_rows > 0 && p.x.column_stride == 1 &&
         detail::in_eights(p.x.data, p.x.row_stride, p.k, p.n) && (n_major || p.w.row_stride == 1) &&
         detail::in_eights(p.w.data, p.w_group_stride, n_major ? p.w.row_stride : p.w.column_stride) &&
         detail::in_eights<T>(p.out);
}

/// x and dy in one row-major block each, in multiples of 8 elements, nothing empty.
template <class T>
bool grouped_mm_dw_sm90_takes(const GroupedMmDw<T>& p) {
  return detail::is_16_bit<T> && p.num_groups > 0 && p.x.column_stride == 1 && p.x.row_stride == p.k &&
         p.dy.column_stride == 1 && p.dy.row_stride == p.n && detail::in_eights(p.x.data, p.k, p.n) &&
         detail::in_eights(p.dy.data) && detail::in_eights<T>(p.dw);
}

/// grouped_mm_reference, up to rounding, for a problem that grouped_mm_sm90_takes, on a device of capability 9.0.
/// scratch: row_tiles_scratch(num_groups). multiprocessors: how many blocks run at once.
template <class T>
void grouped_mm_sm90(const GroupedMm<T>& problem, int32_t* scratch, int multiprocessors, cudaStream_t stream);

/// grouped_mm_dw_reference, up to rounding, for a problem that grouped_mm_dw_sm90_takes; num_rows: of x and dy.
template <class T>
void grouped_mm_dw_sm90(const GroupedMmDw<T>& problem, int64_t num_rows, int multiprocessors, cudaStream_t stream);

}  // namespace anabranch
