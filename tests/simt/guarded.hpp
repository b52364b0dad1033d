// Buffers that notice a kernel writing beside them; AddressSanitizer also notices reading.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "anabranch/core/scalar.hpp"
#include "expect.hpp"

/// `count` elements, 16-byte aligned and then moved by `shift` elements, with a zone of a known pattern on either side.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count, int shift = 0)
      : count_(count), memory_(2 * kZone + (static_cast<size_t>(count) + shift) * sizeof(T) + 16, kPattern) {
    auto* base = memory_.data() + kZone;
    base += (16 - reinterpret_cast<uintptr_t>(base) % 16) % 16;
    data_ = reinterpret_cast<T*>(base) + shift;
    poison(true);
  }
  Guarded(const std::vector<T>& values, int shift = 0) : Guarded(static_cast<int64_t>(values.size()), shift) {
    if (count_) std::memcpy(data_, values.data(), values.size() * sizeof(T));
  }
  Guarded(const Guarded&) = delete;
  ~Guarded() {
    poison(false);
    const auto* first = reinterpret_cast<const unsigned char*>(data_);
    const auto* last = reinterpret_cast<const unsigned char*>(data_ + count_);
    for (const auto& byte : memory_)
      if (&byte < first || &byte >= last) expect(byte == kPattern, "a kernel wrote beside its buffer");
  }

  T* data() { return data_; }
  int64_t size() const { return count_; }
  std::vector<T> values() const { return std::vector<T>(data_, data_ + count_); }

 private:
  static constexpr size_t kZone = 64;
  static constexpr unsigned char kPattern = 0xC7;

  void poison([[maybe_unused]] bool on) {
#if defined(ANABRANCH_SIMT_ASAN)
    auto* begin = memory_.data();
    auto* end = begin + memory_.size();
    auto* first = reinterpret_cast<unsigned char*>(data_);
    auto* last = reinterpret_cast<unsigned char*>(data_ + count_);
    on ? __asan_poison_memory_region(begin, first - begin) : __asan_unpoison_memory_region(begin, end - begin);
    if (on) __asan_poison_memory_region(last, end - last);
#endif
  }

  int64_t count_;
  std::vector<unsigned char> memory_;
  T* data_;
};

template <class T>
std::vector<T> random_values(int64_t count, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::vector<T> values(static_cast<size_t>(count));
  for (T& value : values) value = T(normal(random));
  return values;
}

template <class T>
bool same_bits(const std::vector<T>& left, const std::vector<T>& right) {
  return left.size() == right.size() &&
         (left.empty() || std::memcmp(left.data(), right.data(), left.size() * sizeof(T)) == 0);
}

/// Largest difference, relative to the larger of 1 and the reference, in units of T's spacing at 1.
template <class T>
double spacing_error(const std::vector<T>& values, const std::vector<T>& reference) {
  const double spacing = std::is_same_v<T, double>            ? 0x1p-52
                         : std::is_same_v<T, float>           ? 0x1p-23
                         : std::is_same_v<T, anabranch::half> ? 0x1p-10
                                                              : 0x1p-7;
  double largest = values.size() == reference.size() ? 0 : INFINITY;
  for (size_t i = 0; i < values.size() && i < reference.size(); ++i) {
    const auto value = static_cast<anabranch::accumulate_t<T>>(values[i]);
    const auto expected = static_cast<anabranch::accumulate_t<T>>(reference[i]);
    if (value == expected || (value != value && expected != expected)) continue;
    const double error = std::abs(double(value) - double(expected)) / std::max(1.0, std::abs(double(expected)));
    if (error != error) return INFINITY;
    largest = std::max(largest, error);
  }
  return largest / spacing;
}
