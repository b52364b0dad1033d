// What CUDA's names mean to a host compiler: the language of kernels, in plain C++.
//
// Warp collectives, integer atomics and bit counts are here as a kernel may want them; each has its test in
// tests/simt/test_simt.cpp. There are no float atomics on purpose: their sums depend on the order of arrival, and every
// result of this library is reproducible. __activemask() is missing too: what it returns is not defined by the program.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "anabranch/core/simt_block.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct CUstream_st;
using cudaStream_t = CUstream_st*;

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

inline void __syncthreads() { anabranch::simt::Block::current().barrier(); }

inline void __syncwarp(unsigned mask = 0xffffffffu) {
  anabranch::simt::Block::current().collective({anabranch::simt::Collective::sync, mask});
}

namespace anabranch::simt {

inline int lane() {
  return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}

template <class T>
T shuffle(unsigned mask, T value, int source_lane) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8);
  WarpCall call{Collective::shuffle, mask};
  std::memcpy(&call.value, &value, sizeof(T));
  call.source_lane = source_lane;
  const uint64_t bits = Block::current().collective(call);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

inline unsigned ballot(unsigned mask, bool predicate) {
  return static_cast<unsigned>(Block::current().collective({Collective::ballot, mask, predicate}));
}

}  // namespace anabranch::simt

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int segment = anabranch::simt::lane() / width * width;
  return anabranch::simt::shuffle(mask, value, segment + (source & (width - 1)));
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = anabranch::simt::lane(), source = lane - static_cast<int>(delta);
  return anabranch::simt::shuffle(mask, value, source < lane / width * width ? lane : source);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = anabranch::simt::lane(), source = lane + static_cast<int>(delta);
  return anabranch::simt::shuffle(mask, value, source >= (lane / width + 1) * width ? lane : source);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  const int lane = anabranch::simt::lane(), source = lane ^ lane_mask;
  return anabranch::simt::shuffle(mask, value, source >= (lane / width + 1) * width ? lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) { return anabranch::simt::ballot(mask, predicate != 0); }
inline int __any_sync(unsigned mask, int predicate) { return anabranch::simt::ballot(mask, predicate != 0) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return anabranch::simt::ballot(mask, predicate != 0) == mask; }

template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8);
  anabranch::simt::WarpCall call{anabranch::simt::Collective::match, mask};
  std::memcpy(&call.value, &value, sizeof(T));
  return static_cast<unsigned>(anabranch::simt::Block::current().collective(call));
}

inline int __popc(unsigned value) { return std::popcount(value); }
inline int __ffs(int value) { return value ? std::countr_zero(static_cast<unsigned>(value)) + 1 : 0; }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }

namespace anabranch::simt {

inline Block& block() { return Block::current(); }

/// An element of shared memory that is about to be read, written or updated; each of these is checked.
template <class T>
class SharedReference;

/// The address of an element of shared memory, for atomics.
template <class T>
struct SharedPointer {
  int64_t offset;
  int64_t element;
};

template <class T>
class SharedReference {
 public:
  SharedReference(int64_t offset, int64_t element) : offset_(offset), element_(element) {}

  operator T() const {  // NOLINT: stands for T
    block().access(Access::read, offset_, sizeof(T), element_);
    T value;
    std::memcpy(&value, block().shared.data() + offset_, sizeof(T));
    return value;
  }
  /// Where T itself would convert explicitly.
  template <class U>
    requires(!std::is_same_v<T, U> && std::is_constructible_v<U, T>)
  explicit operator U() const {
    return static_cast<U>(static_cast<T>(*this));
  }
  SharedReference& operator=(const T& value) {
    block().access(Access::write, offset_, sizeof(T), element_);
    std::memcpy(block().shared.data() + offset_, &value, sizeof(T));
    return *this;
  }
  SharedReference& operator=(const SharedReference& other) { return *this = static_cast<T>(other); }
  SharedReference(const SharedReference&) = default;

  SharedReference& operator+=(const T& value) { return *this = static_cast<T>(*this) + value; }
  SharedReference& operator-=(const T& value) { return *this = static_cast<T>(*this) - value; }
  SharedReference& operator*=(const T& value) { return *this = static_cast<T>(*this) * value; }

  SharedPointer<T> operator&() const { return {offset_, element_}; }  // NOLINT: the address of what it stands for

 private:
  int64_t offset_;
  int64_t element_;
};

/// The read-modify-write of every atomic; where another thread may come first is up to the schedule.
template <class T, class F>
T atomic_update(T* address, F&& f) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>);
  block().preempt();
  const T old = *address;
  *address = f(old);
  return old;
}

template <class T, class F>
T atomic_update(SharedPointer<T> pointer, F&& f) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>);
  block().preempt();
  block().access(Access::atomic, pointer.offset, sizeof(T), pointer.element);
  T old;
  std::memcpy(&old, block().shared.data() + pointer.offset, sizeof(T));
  const T updated = f(old);
  std::memcpy(block().shared.data() + pointer.offset, &updated, sizeof(T));
  return old;
}

template <class Pointer>
struct Pointee;
template <class T>
struct Pointee<T*> {
  using type = T;
};
template <class T>
struct Pointee<SharedPointer<T>> {
  using type = T;
};
template <class Pointer>
using pointee_t = typename Pointee<Pointer>::type;

}  // namespace anabranch::simt

template <class Pointer>
auto atomicAdd(Pointer address, anabranch::simt::pointee_t<Pointer> value) {
  return anabranch::simt::atomic_update(address, [=](auto old) { return old + value; });
}
template <class Pointer>
auto atomicMax(Pointer address, anabranch::simt::pointee_t<Pointer> value) {
  return anabranch::simt::atomic_update(address, [=](auto old) { return old < value ? value : old; });
}
template <class Pointer>
auto atomicMin(Pointer address, anabranch::simt::pointee_t<Pointer> value) {
  return anabranch::simt::atomic_update(address, [=](auto old) { return value < old ? value : old; });
}
template <class Pointer>
auto atomicExch(Pointer address, anabranch::simt::pointee_t<Pointer> value) {
  return anabranch::simt::atomic_update(address, [=](auto) { return value; });
}
template <class Pointer>
auto atomicCAS(Pointer address, anabranch::simt::pointee_t<Pointer> expected,
               anabranch::simt::pointee_t<Pointer> value) {
  return anabranch::simt::atomic_update(address, [=](auto old) { return old == expected ? value : old; });
}

namespace anabranch {

/// A stretch of shared memory; see simt.cuh.
template <class T>
class SharedArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  SharedArray(int64_t offset, int64_t count) : offset_(offset), count_(count) {}

  simt::SharedReference<T> operator[](int64_t i) const {
    if (i < 0 || i >= count_) {
      simt::block().fail(simt::Fault::out_of_range, "uses element " + std::to_string(i) + " of a shared array of " +
                                                        std::to_string(count_) + " elements");
    }
    return {offset_ + i * static_cast<int64_t>(sizeof(T)), i};
  }

 private:
  int64_t offset_;
  int64_t count_;
};

class SharedMemory {
 public:
  template <class T>
  SharedArray<T> take(int64_t count) {
    const int64_t begin = used_;
    const int64_t bytes = (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
    if (count < 0 || begin + bytes > simt::block().shared.size()) {
      simt::block().fail(simt::Fault::out_of_range, "takes " + std::to_string(begin + bytes) +
                                                        " bytes of shared memory, launched with " +
                                                        std::to_string(simt::block().shared.size()));
    }
    used_ = begin + bytes;
    return {begin, count};
  }

 private:
  int64_t used_ = 0;
};

template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t, Args&&... args) {
  constexpr uint64_t kMaxThreads = simt::Block::kMaxThreads, kMaxShared = 227 * 1024;
  const auto threads = uint64_t{block.x} * block.y * block.z;
  const auto in_range = [](unsigned value, unsigned limit) { return value - 1 < limit; };
  if (!in_range(grid.x, 0x7fffffffu) || !in_range(grid.y, 65535) || !in_range(grid.z, 65535) ||
      threads - 1 >= kMaxThreads || block.z > 64 || shared_bytes > kMaxShared)
    throw std::runtime_error(
        "simt: a launch that CUDA would refuse: grid or block is empty or too large, or more than " +
        std::to_string(kMaxShared) + " bytes of shared memory");
  auto bound = std::tuple<void (*)(Params...), Params...>(kernel, static_cast<Params>(std::forward<Args>(args))...);
  auto body = [](void* context) {
    std::apply([](auto entry, const auto&... values) { entry(values...); }, *static_cast<decltype(bound)*>(context));
  };

  ++simt::num_launches();
  const simt::Schedule schedule = simt::current_schedule();
  std::mt19937_64 random(schedule.seed);
  std::vector<uint64_t> order(size_t{grid.x} * grid.y * grid.z);
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  if (schedule.order == simt::Order::descending) std::reverse(order.begin(), order.end());
  if (schedule.order == simt::Order::random) std::shuffle(order.begin(), order.end(), random);
  gridDim = grid;
  blockDim = block;
  for (const uint64_t i : order) {
    blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                static_cast<unsigned>(i / (uint64_t{grid.x} * grid.y))};
    simt::Block::current().run(block, static_cast<int64_t>(shared_bytes), body, &bound, random);
  }
}

}  // namespace anabranch
