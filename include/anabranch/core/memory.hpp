// Memory for the large temporaries of the CPU kernels, and for weights that are streamed.
//
// A fresh page costs a fault of about a microsecond in a virtual machine, 25 ms for a hundred megabytes in pages of
// 4 KB: as much as streaming them once. Large stretches therefore ask the system for pages of 2 MB, which also spares
// the processor most of its address translation.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

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

}  // namespace anabranch
