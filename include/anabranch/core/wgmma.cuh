// Products of shared-memory tiles on the tensor cores by 128 threads (sm_90's wgmma), sums in registers.
//
// One wgmma multiplies 64 rows x 16 k of A by 16 k x kColumns of B, both 16-bit, in tiles with the 128-byte swizzle
// that TMA writes (tma.cuh). A tile is either
//   K-major   a line (128 bytes) is 64 k of one row of A or column of B; the 8-line groups follow each other;
//   MN-major  a line is 64 rows of A or columns of B at one k; a block is all k of 64 rows, and blocks follow each
//   other.
// wgmma_tile() describes a tile and wgmma_step() moves it 16 k further.
//
// Registers: thread t of the 128 holds in sums[r] row 16 (t / 32) + t % 32 / 4 + 8 (r / 2 % 2) and column 8 (r / 4) +
// 2 (t % 4) + r % 2 of the 64 x kColumns result (fragment_row, fragment_column).
// Order: wgmma_fence() before the first wgmma after registers were touched, wgmma_commit() closes a group,
// wgmma_wait<n>() returns when at most n groups are under way; until then sums and tiles belong to the tensor cores.
#pragma once

#include "anabranch/core/mbarrier.cuh"
#include "anabranch/core/scalar.hpp"

namespace anabranch {

/// A tile at `address`, a multiple of 1024 plus steps. mn_block_bytes: from 64 rows to the next 64, MN-major only.
__device__ constexpr uint64_t wgmma_tile(SharedAddress address, bool mn_major, uint32_t mn_block_bytes) {
  constexpr uint64_t kGroupBytes = 1024, kSwizzle128 = uint64_t{1} << 62;
  const uint64_t leading = mn_major ? mn_block_bytes / 16 : 1;  // K-major ignores it
  return (address & 0x3ffff) / 16 | leading << 16 | (kGroupBytes / 16) << 32 | kSwizzle128;
}

/// 16 k further: within the line, or 16 lines down.
__device__ constexpr uint64_t wgmma_step(bool mn_major) { return (mn_major ? 16 * 128 : 32) / 16; }

__device__ constexpr int fragment_row(int thread, int reg) {
  return thread / 32 * 16 + thread % 32 / 4 + reg / 2 % 2 * 8;
}
__device__ constexpr int fragment_column(int thread, int reg) { return reg / 4 * 8 + thread % 4 * 2 + reg % 2; }

#if defined(__CUDACC__)

__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}

/// The compiler takes sums for finished as soon as a wgmma is issued. Nothing that reads or writes them crosses this:
/// call it before the first wgmma_fence() and after wgmma_wait<0>(). It costs no instruction.
template <int kCount>
__device__ __forceinline__ void pin_sums(float (&sums)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

/// Moves registers between the threads that load and those that multiply; all threads of a warpgroup call it.
template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// clang-format off
#define ANABRANCH_WGMMA_8(i) \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), \
  "+f"(sums[i + 4]), "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7])

#define ANABRANCH_WGMMA_64(TYPE) \
  asm volatile( \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n64k16.f32." TYPE "." TYPE " " \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, " \
      "%32, %33, p, 1, 1, %35, %36;\n}" \
      : ANABRANCH_WGMMA_8(0), ANABRANCH_WGMMA_8(8), ANABRANCH_WGMMA_8(16), ANABRANCH_WGMMA_8(24) \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(int{kAMnMajor}), "n"(int{kBMnMajor}))

#define ANABRANCH_WGMMA_128(TYPE) \
  asm volatile( \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." TYPE "." TYPE " " \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, " \
      "%64, %65, p, 1, 1, %67, %68;\n}" \
      : ANABRANCH_WGMMA_8(0), ANABRANCH_WGMMA_8(8), ANABRANCH_WGMMA_8(16), ANABRANCH_WGMMA_8(24), \
        ANABRANCH_WGMMA_8(32), ANABRANCH_WGMMA_8(40), ANABRANCH_WGMMA_8(48), ANABRANCH_WGMMA_8(56) \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(int{kAMnMajor}), "n"(int{kBMnMajor}))

#define ANABRANCH_WGMMA_256(TYPE) \
  asm volatile( \
      "{\n.reg .pred p;\nsetp.ne.b32 p, %130, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." TYPE "." TYPE " " \
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, " \
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, " \
      "%128, %129, p, 1, 1, %131, %132;\n}" \
      : ANABRANCH_WGMMA_8(0), ANABRANCH_WGMMA_8(8), ANABRANCH_WGMMA_8(16), ANABRANCH_WGMMA_8(24), \
        ANABRANCH_WGMMA_8(32), ANABRANCH_WGMMA_8(40), ANABRANCH_WGMMA_8(48), ANABRANCH_WGMMA_8(56), \
        ANABRANCH_WGMMA_8(64), ANABRANCH_WGMMA_8(72), ANABRANCH_WGMMA_8(80), ANABRANCH_WGMMA_8(88), \
        ANABRANCH_WGMMA_8(96), ANABRANCH_WGMMA_8(104), ANABRANCH_WGMMA_8(112), ANABRANCH_WGMMA_8(120) \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)), "n"(int{kAMnMajor}), "n"(int{kBMnMajor}))
// clang-format on

/// sums (+)= A B, for the 64 rows of `a` and kColumns columns of `b`; overwrites sums unless `accumulate`.
template <class T, int kColumns, bool kAMnMajor, bool kBMnMajor>
__device__ __forceinline__ void wgmma(float (&sums)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate) {
  static_assert(kColumns == 64 || kColumns == 128 || kColumns == 256);
  constexpr bool kBfloat16 = std::is_same_v<T, bfloat16>;
  static_assert(kBfloat16 || std::is_same_v<T, half>);
  if constexpr (kColumns == 64 && kBfloat16) ANABRANCH_WGMMA_64("bf16");
  if constexpr (kColumns == 64 && !kBfloat16) ANABRANCH_WGMMA_64("f16");
  if constexpr (kColumns == 128 && kBfloat16) ANABRANCH_WGMMA_128("bf16");
  if constexpr (kColumns == 128 && !kBfloat16) ANABRANCH_WGMMA_128("f16");
  if constexpr (kColumns == 256 && kBfloat16) ANABRANCH_WGMMA_256("bf16");
  if constexpr (kColumns == 256 && !kBfloat16) ANABRANCH_WGMMA_256("f16");
}

#undef ANABRANCH_WGMMA_8
#undef ANABRANCH_WGMMA_64
#undef ANABRANCH_WGMMA_128
#undef ANABRANCH_WGMMA_256

#else

inline void wgmma_fence() { simt::block().warpgroup().fence(simt::block().thread() % simt::kWarpgroup); }
inline void wgmma_commit() { simt::block().warpgroup().commit(simt::block().thread() % simt::kWarpgroup); }
template <int kLeft>
void wgmma_wait() {
  const int thread = simt::block().thread();
  simt::block().warpgroup().wait(simt::block().async, thread / simt::kWarpgroup, thread % simt::kWarpgroup, kLeft);
}
template <int kCount>
void pin_sums(float (&)[kCount]) {}
template <int kRegisters>
void release_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24);
}
template <int kRegisters>
void take_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters <= 256);
}

template <class T, int kColumns, bool kAMnMajor, bool kBMnMajor>
void wgmma(float (&sums)[kColumns / 2], uint64_t a, uint64_t b, bool accumulate) {
  simt::block().wgmma({a, b, kColumns, kAMnMajor, kBMnMajor, std::is_same_v<T, bfloat16>, accumulate, sums});
}

#endif

}  // namespace anabranch
