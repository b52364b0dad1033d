// Copies of 16 bytes from global to shared memory that a thread starts and waits for in groups (sm_80).
//
// They are ordinary writes of that thread: visible to it after cp_async_wait, to other threads after it has arrived at
// a barrier, to wgmma if it called fence_proxy_async() before that.
#pragma once

#include "anabranch/core/mbarrier.cuh"

namespace anabranch {

#if defined(__CUDACC__)

/// Copies 16 bytes if `exists`, else writes zeros and reads nothing. Both addresses are multiples of 16. Goes through
/// L2 alone: a row that several blocks want is one they want at different times.
__device__ __forceinline__ void cp_async_16(SharedAddress to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(__cvta_generic_to_global(from)),
               "r"(exists ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most `kLeft` of the thread's groups are under way.
template <int kLeft>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

#else

inline void cp_async_16(SharedAddress to, const void* from, bool exists) {
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0) {
    simt::block().fail(simt::Fault::misaligned, "copies from an address that is not a multiple of 16");
  }
  simt::block().async.copy(simt::block().thread(), to, exists ? from : nullptr);
}
inline void cp_async_commit() { simt::block().async.copy_commit(simt::block().thread()); }
template <int kLeft>
void cp_async_wait() {
  simt::block().async.copy_wait(simt::block().thread(), kLeft);
}

#endif

}  // namespace anabranch
