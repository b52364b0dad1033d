// Temporaries of the CPU kernels: what the pool hands out, what it keeps, and many threads at once. With
// SANITIZE=thread this is the pool's race test.
#include <atomic>
#include <cstring>
#include <thread>

#include "anabranch/core/memory.hpp"
#include "cpu_kernels.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

constexpr std::size_t kPage = huge_page_bytes;

void* address(const TemporaryPool::Buffer& buffer) { return buffer.bytes.get(); }

void check_alignment() {
  for (const std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{63}, kPage - 1, kPage, 3 * kPage + 5}) {
    const AlignedBytes bytes = aligned_bytes(size);
    const std::size_t alignment = size >= kPage ? kPage : 64;
    expect(reinterpret_cast<uintptr_t>(bytes.get()) % alignment == 0, "aligned_bytes of " + std::to_string(size));
    std::memset(bytes.get(), 1, size);
  }
}

/// The smallest buffer that is large enough and less than twice as large as needed.
void check_best_fit() {
  TemporaryPool pool;
  std::vector<TemporaryPool::Buffer> out;
  std::vector<void*> where;
  for (const std::size_t pages : {7, 4, 5}) {
    out.push_back(pool.take(pages * kPage));
    expect(out.back().size == pages * kPage, "a fresh buffer has the size asked for");
    where.push_back(address(out.back()));
  }
  for (auto& buffer : out) pool.give_back(std::move(buffer));
  auto four = pool.take(4 * kPage - 100);
  expect(address(four) == where[1] && four.size == 4 * kPage, "the best of three buffers that would do");
  auto next = pool.take(4 * kPage - 100);
  expect(address(next) == where[2], "the second best while the best is out");
  auto fresh = pool.take(3 * kPage);
  expect(fresh.size == 3 * kPage && address(fresh) != where[0], "7 pages are more than twice 3");
  auto seven = pool.take(6 * kPage);
  expect(address(seven) == where[0], "7 pages serve 6");
  auto last = pool.take(6 * kPage);
  expect(last.size == 6 * kPage && address(last) != where[0], "nobody gets what is out");
}

/// Beyond its capacity the pool lets go of what came back first.
void check_capacity() {
  TemporaryPool pool;
  constexpr std::size_t kQuarter = TemporaryPool::capacity / 4;
  const auto size = [](int i) { return kQuarter + static_cast<std::size_t>(100 * i); };
  std::vector<TemporaryPool::Buffer> out, again;
  for (int i = 0; i < 5; ++i) out.push_back(pool.take(size(i)));
  for (auto& buffer : out) pool.give_back(std::move(buffer));
  // 5 quarters and some bytes came back, so the first two had to go. A kept buffer shows by being larger than asked.
  for (int i = 2; i < 5; ++i) {
    again.push_back(pool.take(size(i) - 50));
    expect(again.back().size == size(i), "the latest buffers are kept");
  }
  const auto beyond = pool.take(kQuarter);
  expect(beyond.size == kQuarter, "the pool is empty: what is taken now has just the size asked for");

  pool.give_back({aligned_bytes(TemporaryPool::capacity + 1), TemporaryPool::capacity + 1});
  expect(pool.take(TemporaryPool::capacity).size == TemporaryPool::capacity, "what is larger than all is not kept");
}

/// Small temporaries never meet the pool; large ones come back to it.
void check_temporaries() {
  const auto taken = [](std::size_t count) {
    const Temporary<float> temporary(count);
    std::fill_n(temporary.data(), count, 1.0f);
    return static_cast<void*>(temporary.data());
  };
  const std::size_t large = kPage;
  expect(taken(large) == taken(large), "a large temporary is the one before it");
  const Temporary<float> one(large), other(large);
  expect(one.data() != other.data(), "two at once are apart");
}

/// No two threads hold the same memory: each finds what it wrote.
void check_threads() {
  std::atomic<int> wrong = 0;
  const auto work = [&](int own) {
    for (int round = 0; round < 60; ++round) {
      const std::size_t size = kPage + static_cast<std::size_t>((own * 7 + round) % 5) * 4096;
      const Temporary<unsigned char> temporary(size);
      unsigned char* const bytes = temporary.data();
      for (std::size_t at = 0; at < size; at += 4096) bytes[at] = static_cast<unsigned char>(own);
      std::this_thread::yield();
      for (std::size_t at = 0; at < size; at += 4096) wrong += bytes[at] != own;
    }
  };
  std::vector<std::thread> threads;
  for (int own = 1; own <= 6; ++own) threads.emplace_back(work, own);
  for (auto& thread : threads) thread.join();
  expect(wrong == 0, "a thread finds what it wrote in its temporary");
}

}  // namespace

int main() {
  context = "memory";
  check_alignment();
  check_best_fit();
  check_capacity();
  check_temporaries();
  check_threads();
  std::puts("memory: ok");
}
