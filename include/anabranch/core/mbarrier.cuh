// Barriers in shared memory that count arrivals and bytes (sm_90): how threads and copies hand stages of a pipeline to
// each other.
//
// A barrier's phases end one after the other, each when `count` threads have arrived and all bytes that it was told to
// expect have been written. wait(parity) returns once the phase of that parity has ended: phases are numbered 0, 1, 0,
// ... and a new barrier counts as one whose phase 1 has just ended, so a producer's first wait passes.
// A thread that waited sees what those that arrived wrote before, and the bytes of copies; only what threads wrote by
// ordinary stores or cp.async and wgmma is to read needs fence_proxy_async() in between, by the writer before it
// arrives.
#pragma once

#include "anabranch/core/simt.cuh"

namespace anabranch {

/// An address in the shared memory of the block, as PTX takes it.
using SharedAddress = uint32_t;

/// Rounds up to a power of two.
__device__ constexpr SharedAddress align_up(SharedAddress address, SharedAddress to) {
  return (address + to - 1) & ~(to - 1);
}

#if defined(__CUDACC__)

template <class T>
__device__ __forceinline__ SharedAddress shared_address(T* element) {
  return static_cast<SharedAddress>(__cvta_generic_to_shared(element));
}

__device__ __forceinline__ void mbarrier_init(SharedAddress barrier, uint32_t count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}

/// After the last mbarrier_init and before the __syncthreads() that announces them.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(SharedAddress barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

/// An arrival that also makes the phase wait for `bytes` more bytes.
__device__ __forceinline__ void mbarrier_arrive_expecting(SharedAddress barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void mbarrier_wait(SharedAddress barrier, uint32_t parity) {
  uint32_t ended;
  do {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(ended)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (!ended);
}

__device__ __forceinline__ void fence_proxy_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

#else

template <class T>
SharedAddress shared_address(simt::SharedPointer<T> element) {
  return simt::kSharedBase + static_cast<SharedAddress>(element.offset);
}
inline void mbarrier_init(SharedAddress barrier, uint32_t count) {
  simt::block().async.mbarrier_init(simt::block().thread(), barrier, count);
}
inline void fence_mbarrier_init() {}
inline void mbarrier_arrive(SharedAddress barrier) { simt::block().mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expecting(SharedAddress barrier, uint32_t bytes) {
  simt::block().mbarrier_arrive(barrier, bytes);
}
inline void mbarrier_wait(SharedAddress barrier, uint32_t parity) { simt::block().mbarrier_wait(barrier, parity); }
inline void fence_proxy_async() { simt::block().async.fence_proxy_async(simt::block().thread()); }

#endif

}  // namespace anabranch
