// What the tests of the GEMM share: random operands that end where an unreadable page begins.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "anabranch/core/gemm_cpu.hpp"

namespace anabranch::testing {

inline int failures = 0;

#define CHECK(condition, ...)                                              \
  do {                                                                     \
    if (!(condition)) {                                                    \
      if (++anabranch::testing::failures <= 20) {                          \
        std::printf("%s:%d: %s failed: ", __FILE__, __LINE__, #condition); \
        std::printf(__VA_ARGS__);                                          \
        std::printf("\n");                                                 \
      }                                                                    \
    }                                                                      \
  } while (0)

/// Memory whose last byte is the last readable one.
class GuardedBytes {
 public:
  explicit GuardedBytes(std::size_t capacity) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    size_ = (capacity + page - 1) / page * page;
    void* memory = mmap(nullptr, size_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + size_, page, PROT_NONE) != 0) std::abort();
    begin_ = static_cast<char*>(memory);
  }
  GuardedBytes(const GuardedBytes&) = delete;

  template <class T>
  T* last(std::size_t count) {
    if (count * sizeof(T) > size_) std::abort();
    return reinterpret_cast<T*>(begin_ + size_) - count;
  }

 private:
  char* begin_;
  std::size_t size_;
};

inline std::mt19937 generator(1);

inline int64_t uniform(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

enum class Form { k_contiguous, outer_contiguous, strided, repeated, num_forms };

/// One operand of logical shape [outer, k] in guarded memory, with ids where asked.
template <class T>
struct RandomOperand {
  std::vector<int32_t> outer_ids, k_ids;
  GemmOperand<T> operand{};

  RandomOperand(GuardedBytes& memory, int64_t outer, int64_t k, Form form, bool with_outer_ids, bool with_k_ids) {
    const int64_t stored_outer = outer + (with_outer_ids ? uniform(0, 9) : 0);
    const int64_t stored_k = k + (with_k_ids ? uniform(0, 9) : 0);
    const int64_t gap = uniform(0, 2) * uniform(0, 5);
    switch (form) {
      case Form::k_contiguous:
        operand.outer_stride = stored_k + gap, operand.k_stride = 1;
        break;
      case Form::outer_contiguous:
        operand.outer_stride = 1, operand.k_stride = stored_outer + gap;
        break;
      case Form::strided:
        operand.k_stride = uniform(2, 3), operand.outer_stride = stored_k * operand.k_stride + gap;
        break;
      default:
        operand.k_stride = uniform(0, 1), operand.outer_stride = operand.k_stride ? 0 : uniform(0, 1);
    }
    const bool empty = outer == 0 || k == 0;
    const int64_t count = empty ? 0 : (stored_outer - 1) * operand.outer_stride + (stored_k - 1) * operand.k_stride + 1;
    T* data = memory.last<T>(static_cast<std::size_t>(count));
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < count; ++i) data[i] = T(normal(generator));
    operand.data = data;
    if (with_outer_ids) {
      for (int64_t i = 0; i < outer; ++i) outer_ids.push_back(static_cast<int32_t>(uniform(0, stored_outer - 1)));
      operand.outer_ids = outer_ids.data();
    }
    if (with_k_ids) {
      for (int64_t p = 0; p < k; ++p) k_ids.push_back(static_cast<int32_t>(uniform(0, stored_k - 1)));
      operand.k_ids = k_ids.data();
    }
  }
};

struct Buffers {
  GuardedBytes a{std::size_t{1} << 24}, b{std::size_t{1} << 24}, workspace{gemm_workspace_bytes};
};

}  // namespace anabranch::testing
