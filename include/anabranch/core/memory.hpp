// Memory for the large temporaries of the CPU kernels, and for results and weights that are streamed.
//
// A fresh page costs a fault and is cleared by the system: measured in a virtual machine, 37 ms for a hundred megabytes
// in pages of 4 KB, 5 to 20 ms in pages of 2 MB, where streaming them once costs 3. Large stretches therefore ask for
// pages of 2 MB, which also spares the processor most of its address translation, and temporaries are kept between
// calls.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <new>
#include <utility>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace anabranch {

inline constexpr std::size_t huge_page_bytes = std::size_t{2} << 20;

/// Asks for huge pages within [data, data + size), if the stretch holds any and nobody has touched it yet. A hint: it
/// cannot fail.
inline void advise_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] std::size_t size) {
#if defined(__linux__)
  const auto begin = (reinterpret_cast<uintptr_t>(data) + huge_page_bytes - 1) / huge_page_bytes * huge_page_bytes;
  const auto end = (reinterpret_cast<uintptr_t>(data) + size) / huge_page_bytes * huge_page_bytes;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

struct AlignedDelete {
  std::size_t alignment = 64;
  void operator()(std::byte* bytes) const { ::operator delete[](bytes, std::align_val_t{alignment}); }
};
using AlignedBytes = std::unique_ptr<std::byte[], AlignedDelete>;

/// `size` bytes, aligned to a cache line, or to a huge page where they fill one.
inline AlignedBytes aligned_bytes(std::size_t size) {
  const std::size_t alignment = size >= huge_page_bytes ? huge_page_bytes : 64;
  auto* bytes = static_cast<std::byte*>(::operator new[](std::max<std::size_t>(size, 1), std::align_val_t{alignment}));
  if (alignment == huge_page_bytes) advise_huge_pages(bytes, size);
  return AlignedBytes(bytes, AlignedDelete{alignment});
}

/// Below this, malloc keeps freed memory itself; above it may return the pages to the system, to fault again next time.
inline constexpr std::size_t pooled_bytes = std::size_t{64} << 10;

/// Larger temporaries go back to one pool for the whole process, which keeps up to 256 MB of them.
class TemporaryPool {
 public:
  struct Buffer {
    AlignedBytes bytes;
    std::size_t size = 0;
  };

  static TemporaryPool& instance() {
    static TemporaryPool pool;
    return pool;
  }

  /// At least `size` bytes; less than twice as many, so that a small need does not take a large buffer away.
  Buffer take(std::size_t size) {
    {
      const std::lock_guard lock(mutex_);
      auto best = free_.end();
      for (auto at = free_.begin(); at != free_.end(); ++at) {
        if (at->size >= size && at->size < 2 * size && (best == free_.end() || at->size < best->size)) best = at;
      }
      if (best != free_.end()) {
        Buffer found = std::move(*best);
        free_.erase(best);
        return found;
      }
    }
    return {aligned_bytes(size), size};
  }

  /// The oldest go first when there is too much.
  void give_back(Buffer buffer) {
    std::vector<Buffer> outgrown;  // freed outside the lock
    const std::lock_guard lock(mutex_);
    free_.push_back(std::move(buffer));
    std::size_t kept = 0;
    for (const Buffer& one : free_) kept += one.size;
    while (kept > capacity) {
      kept -= free_.front().size;
      outgrown.push_back(std::move(free_.front()));
      free_.erase(free_.begin());
    }
  }

  static constexpr std::size_t capacity = std::size_t{256} << 20;

 private:
  std::mutex mutex_;
  std::vector<Buffer> free_;
};

/// `count` elements of T for the length of a scope, not initialised.
template <class T>
class Temporary {
 public:
  explicit Temporary(std::size_t count) : buffer_(allocate(count * sizeof(T))) {}
  Temporary(const Temporary&) = delete;
  ~Temporary() {
    if (buffer_.size >= pooled_bytes) TemporaryPool::instance().give_back(std::move(buffer_));
  }
  T* data() const { return reinterpret_cast<T*>(buffer_.bytes.get()); }

 private:
  static TemporaryPool::Buffer allocate(std::size_t size) {
    return size >= pooled_bytes ? TemporaryPool::instance().take(size)
                                : TemporaryPool::Buffer{aligned_bytes(size), size};
  }
  TemporaryPool::Buffer buffer_;
};

}  // namespace anabranch
