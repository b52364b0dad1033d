// A reader/writer lock that can also be read past: one word of a node.
//
//   bit 0        a writer is inside
//   bits 1..15   readers inside that hold the lock (the paper's way)
//   bits 16..63  version: counts the writers that changed something
//
// Optimistic readers write nothing: they note the version, read, and ask whether it is still the same. What they read
// in between may be torn and must not be believed, only bounded, until `unchanged` has said yes. A node that was given
// back and taken again has another version, so such readers need no epochs: memory of nodes is never given to anything
// else.
//
// The thread sanitizer knows no fences. Under it the data of nodes is read and written by atomics of its own, one word
// at a time; elsewhere by ordinary instructions, vectors among them, with a fence behind.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/// Tests define it before they include the index, to let other threads come in between. The points: a version was seen
/// (entered) and is about to be compared (unchanged), a lock is about to be taken (locking), was taken (locked) and is
/// about to be released (unlocking), entries are about to be moved (moving), a free node to be taken (taking).
#if !defined(ANABRANCH_INDEX_YIELD)
#define ANABRANCH_INDEX_YIELD(point)
#endif

namespace anabranch::index_detail {

#if defined(__SANITIZE_THREAD__)
inline constexpr bool watched = true;
#else
inline constexpr bool watched = false;
#endif

template <class T>
[[gnu::always_inline]] inline T read(const T* at) {
  return __atomic_load_n(at, watched ? __ATOMIC_ACQUIRE : __ATOMIC_RELAXED);
}

template <class T>
[[gnu::always_inline]] inline void write(T* at, T value) {
  __atomic_store_n(at, value, watched ? __ATOMIC_RELEASE : __ATOMIC_RELAXED);
}

/// n elements; the two stretches may overlap.
template <class T>
[[gnu::always_inline]] inline void move(T* to, const T* from, int n) {
  ANABRANCH_INDEX_YIELD(moving);
  if constexpr (!watched) {
    std::memmove(to, from, n * sizeof(T));
  } else if (to <= from) {
    for (int i = 0; i < n; ++i) write(to + i, read(from + i));
  } else {
    for (int i = n; i-- > 0;) write(to + i, read(from + i));
  }
}

/// Waits a little, and longer each time: whoever holds the lock may have lost its processor.
class Spin {
 public:
  [[gnu::always_inline]] inline void wait() {
    if (++spins_ > 64) return std::this_thread::yield();
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

 private:
  int spins_ = 0;
};

struct VersionLock {
  static constexpr uint64_t writer = 1, reader = 2, version_unit = uint64_t{1} << 16,
                            version_mask = ~(version_unit - 1);

  /// The version to compare with, once no writer is inside.
  [[gnu::always_inline]] static inline uint64_t begin_read(const uint64_t* lock) {
    uint64_t seen = __atomic_load_n(lock, __ATOMIC_ACQUIRE);
    if (seen & writer) [[unlikely]] {
      Spin spin;
      do {
        spin.wait();
        seen = __atomic_load_n(lock, __ATOMIC_ACQUIRE);
      } while (seen & writer);
    }
    ANABRANCH_INDEX_YIELD(entered);
    return seen & version_mask;
  }

  /// Whether no writer has been inside since `version` was seen.
  [[gnu::always_inline]] static inline bool unchanged(const uint64_t* lock, uint64_t version) {
    ANABRANCH_INDEX_YIELD(unchanged);
    if constexpr (!watched) std::atomic_thread_fence(std::memory_order_acquire);
    return (__atomic_load_n(lock, watched ? __ATOMIC_ACQUIRE : __ATOMIC_RELAXED) & (version_mask | writer)) == version;
  }

  /// Takes the lock if nothing has changed since `version` and nobody else holds it. Never waits, so it may be called
  /// against the order of locks.
  [[gnu::always_inline]] static inline bool try_upgrade(uint64_t* lock, uint64_t version) {
    ANABRANCH_INDEX_YIELD(locking);
    return __atomic_compare_exchange_n(lock, &version, version | writer, false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED) &&
           entered();
  }

  [[gnu::always_inline]] static inline bool try_lock(uint64_t* lock) {
    uint64_t seen = __atomic_load_n(lock, __ATOMIC_RELAXED);
    return !(seen & ~version_mask) && try_upgrade(lock, seen);
  }

  [[gnu::always_inline]] static inline void lock(uint64_t* lock) {
    for (Spin spin; !try_lock(lock); spin.wait()) {
    }
  }

  /// Lets others in; they see that the node is another one.
  [[gnu::always_inline]] static inline void unlock(uint64_t* lock) {
    ANABRANCH_INDEX_YIELD(unlocking);
    const uint64_t held = __atomic_load_n(lock, __ATOMIC_RELAXED);
    __atomic_store_n(lock, (held & version_mask) + version_unit, __ATOMIC_RELEASE);
  }

  /// Lets others in where nothing was changed.
  [[gnu::always_inline]] static inline void unlock_unchanged(uint64_t* lock) {
    ANABRANCH_INDEX_YIELD(unlocking);
    __atomic_store_n(lock, __atomic_load_n(lock, __ATOMIC_RELAXED) & version_mask, __ATOMIC_RELEASE);
  }

  [[gnu::always_inline]] static inline void lock_shared(uint64_t* lock) {
    for (Spin spin;; spin.wait()) {
      uint64_t seen = __atomic_load_n(lock, __ATOMIC_RELAXED);
      if ((seen & writer) || (seen & ~version_mask) >= version_unit - reader) continue;
      if (__atomic_compare_exchange_n(lock, &seen, seen + reader, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) break;
    }
    ANABRANCH_INDEX_YIELD(locked);
  }

  [[gnu::always_inline]] static inline void unlock_shared(uint64_t* lock) {
    ANABRANCH_INDEX_YIELD(unlocking);
    __atomic_fetch_sub(lock, reader, __ATOMIC_RELEASE);
  }

 private:
  /// What the writer stores from here on may not be seen before its lock is.
  [[gnu::always_inline]] static inline bool entered() {
    if constexpr (!watched) std::atomic_thread_fence(std::memory_order_release);
    ANABRANCH_INDEX_YIELD(locked);
    return true;
  }
};

}  // namespace anabranch::index_detail
