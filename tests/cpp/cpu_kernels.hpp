// What the tests of the CPU kernels share: values, comparisons, and how many threads the kernels run on.
//
// Built with SANITIZE=thread, these tests are the race tests of the kernels' parallel loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/parallel.hpp"
#include "anabranch/core/scalar.hpp"

namespace anabranch::testing {

inline std::mt19937 random_bits(1);
inline std::string context;  // what is being tested, for the message
inline int num_threads = 1;
/// Under a sanitizer two dtypes are enough: the loops around the products, whose own tests have all, are the same.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool every_dtype = false;
#else
inline constexpr bool every_dtype = true;
#endif

inline void expect(bool condition, const std::string& what) {
  if (condition) return;
  std::printf("%s: %s (%d threads, %s)\n", context.c_str(), what.c_str(), num_threads, cpu_isa_name(cpu_isa()).data());
  std::exit(1);
}

template <class To, class From>
std::vector<To> converted(const std::vector<From>& values) {
  std::vector<To> to(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    to[i] = To(static_cast<accumulate_t<To>>(static_cast<accumulate_t<From>>(values[i])));
  }
  return to;
}

template <class T>
std::vector<T> random_values(int64_t count, double scale = 1) {
  std::normal_distribution<double> normal(0, scale);
  std::vector<double> values(count);
  for (double& value : values) value = normal(random_bits);
  return converted<T>(values);
}

template <class T>
bool same_bits(const std::vector<T>& left, const std::vector<T>& right) {
  if (left.size() != right.size()) return false;
  return left.empty() || std::memcmp(left.data(), right.data(), left.size() * sizeof(T)) == 0;
}

template <class T>
const char* type_name() {
  if (std::is_same_v<T, double>) return "double";
  if (std::is_same_v<T, float>) return "float";
  return std::is_same_v<T, bfloat16> ? "bfloat16" : "half";
}

/// The largest error in units of T's spacing at the largest expected value (at least 1) must be at most `units`.
template <class T, class Value>
void expect_close(const std::vector<Value>& values, const std::vector<double>& expected, double units,
                  const std::string& what) {
  const double spacing = std::is_same_v<T, double>     ? 0x1p-52
                         : std::is_same_v<T, float>    ? 0x1p-23
                         : std::is_same_v<T, bfloat16> ? 0x1p-7
                                                       : 0x1p-10;
  double scale = 1, worst = 0;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  const auto found = converted<double>(values);
  expect(found.size() == expected.size(), what + " has another size");
  for (size_t i = 0; i < found.size(); ++i) {
    const double error = std::abs(found[i] - expected[i]);
    worst = error <= worst ? worst : error;  // NaN is the worst
  }
  expect(worst <= units * spacing * scale, what + " is off by " + std::to_string(worst / spacing / scale) + " units");
}

/// f() on one thread and on several: check_first(results) looks at the first, the others must have the same bits.
template <class F, class Check>
void on_several_threads(F&& f, Check&& check_first) {
  parallel_backend().num_threads = [] { return num_threads; };
  num_threads = 1;
  const auto first = f();
  check_first(first);
#if defined(__SANITIZE_ADDRESS__)
  constexpr int several[] = {2};  // which addresses are touched does not depend on it
#else
  constexpr int several[] = {2, 5};
#endif
  for (const int threads : several) {
    num_threads = threads;
    const auto again = f();
    for (size_t i = 0; i < first.size(); ++i) {
      expect(same_bits(again[i], first[i]), "result " + std::to_string(i) + " has other bits than on one thread");
    }
  }
  num_threads = 1;
}

/// f() on every instruction set of this machine; under the thread sanitizer on the fastest, since the loops over
/// threads are the same for all.
template <class F>
void on_every_cpu_isa(F&& f) {
  for (const CpuIsa isa : all_cpu_isas) {
    if (isa > detected_cpu_isa()) continue;
#if defined(__SANITIZE_THREAD__)
    if (isa < detected_cpu_isa()) continue;
#endif
    set_cpu_isa(isa);
    f();
  }
}

}  // namespace anabranch::testing
