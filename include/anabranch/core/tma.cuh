// Boxes of a tensor from global to shared memory by one thread's request (sm_90's tensor memory accelerator).
//
// A TensorMap describes a tensor of 16-bit elements of up to three dimensions, innermost first, and the box that one
// request copies. The innermost box extent is 64 elements = 128 bytes, and the box lands with the 128-byte swizzle that
// wgmma reads: piece p (16 bytes) of line r lies at line r, piece p ^ (r % 8), lines counted from a 1024-byte boundary.
// Elements outside the tensor are written as zeros and count as bytes all the same.
#pragma once

#include "anabranch/core/check.hpp"
#include "anabranch/core/mbarrier.cuh"
#include "anabranch/core/scalar.hpp"

#if defined(__CUDACC__)
#include <cuda.h>
#endif

namespace anabranch {

inline constexpr int kSwizzleColumns = 64;   // elements of one 128-byte line
inline constexpr int kSwizzlePeriod = 1024;  // bytes after which the pattern repeats
inline constexpr int kMaxBoxLines = 256;

/// Byte of piece `piece` of line `line` in a swizzled tile, for threads that write where TMA could.
__device__ constexpr uint32_t swizzled_offset(uint32_t line, uint32_t piece) {
  return line * 128 + ((piece ^ (line & 7)) << 4);
}

/// [planes, lines, columns] elements; strides in elements, of a line and of a plane. A box is box_lines x 64 elements.
template <class T>
struct TensorView {
  const T* data;
  int64_t columns, lines, planes;
  int64_t line_stride, plane_stride;
  int box_lines;
};

namespace detail {

/// What the hardware demands of a tensor; throws std::invalid_argument.
template <class T>
void check_tensor_view(const TensorView<T>& view) {
  static_assert(sizeof(T) == 2);
  check(reinterpret_cast<uintptr_t>(view.data) % 16 == 0, "TensorMap: data is not aligned to 16 bytes, must be");
  check(view.line_stride % 8 == 0 && view.plane_stride % 8 == 0, "TensorMap: strides are ", view.line_stride, ", ",
        view.plane_stride, " elements, must be multiples of 8");
  const auto fits = [](int64_t extent) { return extent >= 1 && extent <= int64_t{1} << 32; };
  check(fits(view.columns) && fits(view.lines) && fits(view.planes), "TensorMap: extents are ", view.planes, ", ",
        view.lines, ", ", view.columns, ", must be in [1, 2^32]");
  check(view.line_stride < int64_t{1} << 39 && view.plane_stride < int64_t{1} << 39,
        "TensorMap: strides are too large, must be below 2^40 bytes");
  check(view.box_lines >= 1 && view.box_lines <= kMaxBoxLines, "TensorMap: box has ", view.box_lines,
        " lines, must have 1 to ", kMaxBoxLines);
}

}  // namespace detail

#if defined(__CUDACC__)

struct TensorMap {
  CUtensorMap map;
};

/// Encodes on the host, through the driver's own function: nothing links against libcuda.
template <class T>
TensorMap make_tensor_map(const TensorView<T>& view) {
  detail::check_tensor_view(view);
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found) !=
            cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
      cudaGetLastError();
      throw std::runtime_error("CUDA driver has no cuTensorMapEncodeTiled: it is older than 12.0; update it");
    }
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  constexpr auto type =
      std::is_same_v<T, bfloat16> ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const cuuint64_t extents[] = {static_cast<cuuint64_t>(view.columns), static_cast<cuuint64_t>(view.lines),
                                static_cast<cuuint64_t>(view.planes)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(view.line_stride) * sizeof(T),
                                static_cast<cuuint64_t>(view.plane_stride) * sizeof(T)};
  const cuuint32_t box[] = {kSwizzleColumns, static_cast<cuuint32_t>(view.box_lines), 1}, steps[] = {1, 1, 1};
  TensorMap out;
  const CUresult result =
      encode(&out.map, type, 3, const_cast<T*>(view.data), extents, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("cuTensorMapEncodeTiled failed with CUresult " + std::to_string(result));
  }
  return out;
}

/// Starts the copy of the box at (column, line, plane) to `to`, a multiple of 1024; it completes on `barrier`, which
/// must expect box_lines * 128 bytes. `map` is a __grid_constant__ parameter of the kernel.
__device__ __forceinline__ void tma_load(SharedAddress to, const TensorMap& map, int column, int line, int plane,
                                         SharedAddress barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(to),
      "l"(reinterpret_cast<uint64_t>(&map)), "r"(column), "r"(line), "r"(plane), "r"(barrier)
      : "memory");
}

#else

struct TensorMap {
  const unsigned char* data;
  int64_t extents[3], strides[2];  // strides in bytes
  int box_lines;
};

template <class T>
TensorMap make_tensor_map(const TensorView<T>& view) {
  detail::check_tensor_view(view);
  return {reinterpret_cast<const unsigned char*>(view.data),
          {view.columns, view.lines, view.planes},
          {view.line_stride * 2, view.plane_stride * 2},
          view.box_lines};
}

inline void tma_load(SharedAddress to, const TensorMap& map, int column, int line, int plane, SharedAddress barrier) {
  simt::Block& block = simt::block();
  if (to % 128 != 0) block.fail(simt::Fault::misaligned, "starts a TMA copy to an address that 128 does not divide");
  for (int r = 0; r < map.box_lines; ++r) {
    for (int piece = 0; piece < 8; ++piece) {
      unsigned char bytes[16] = {};
      for (int i = 0; i < 8; ++i) {
        const int64_t at[3] = {int64_t{column} + piece * 8 + i, int64_t{line} + r, plane};
        bool inside = true;
        for (int d = 0; d < 3; ++d) inside = inside && at[d] >= 0 && at[d] < map.extents[d];
        if (inside) {
          std::memcpy(bytes + 2 * i, map.data + at[0] * 2 + at[1] * map.strides[0] + at[2] * map.strides[1], 2);
        }
      }
      const auto linear = to + static_cast<SharedAddress>(r * 128 + piece * 16);
      block.async.bulk_write(block.thread(), barrier, linear ^ (linear >> 7 & 7) << 4, bytes);
    }
  }
  block.bulk_complete(barrier, static_cast<uint32_t>(map.box_lines) * 128);
}

#endif

}  // namespace anabranch
