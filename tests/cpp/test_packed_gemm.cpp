// packed_gemm against gemm_reference in double: every type, stored as itself and as int8, every instruction set, with
// shapes around the register tiles and the blocks of k, a shorter k than was packed, rows picked by ids, and guards
// around c.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "anabranch/core/memory.hpp"
#include "anabranch/core/packed_gemm.hpp"

namespace {

using namespace anabranch;

int failures = 0;
std::mt19937 generator(1);

int64_t uniform(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(generator); }

template <class T>
std::vector<T> random_values(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<T> values(count);
  for (T& value : values) {
    if constexpr (std::is_same_v<T, int8_t>) {
      value = static_cast<int8_t>(uniform(-127, 127));
    } else {
      value = T(normal(generator));
    }
  }
  return values;
}

template <class T>
std::vector<double> to_double(const std::vector<T>& values) {
  std::vector<double> result;
  for (const T& value : values) {
    if constexpr (std::is_same_v<T, bfloat16> || std::is_same_v<T, half>) {
      result.push_back(static_cast<float>(value));
    } else {
      result.push_back(value);
    }
  }
  return result;
}

template <class T, class Stored>
void run_case(CpuIsa isa, int64_t m, int64_t n, int64_t k, bool shorter, bool ids, bool strided_a, bool transposed_b) {
  using Sum = accumulate_t<T>;
  const int64_t packed_k = k + (shorter ? uniform(1, 40) : 0), stored_rows = m + 3, step = strided_a ? 2 : 1;
  const int64_t a_stride = k * step + uniform(0, 3);
  const auto a = random_values<T>(stored_rows * a_stride + 1);
  const auto b = random_values<Stored>(n * packed_k);
  const int64_t b_outer = transposed_b ? 1 : packed_k, b_inner = transposed_b ? n : 1;
  std::vector<int32_t> row_ids(m);
  for (int32_t& id : row_ids) id = static_cast<int32_t>(uniform(0, stored_rows - 1));

  const auto kernels = packed_gemm_kernels<T, Stored>(isa);
  const int64_t bytes = packed_bytes(n, packed_k, sizeof(Stored));
  const auto packed = aligned_bytes(bytes), workspace = aligned_bytes(gemm_workspace_bytes);
  auto* stored = reinterpret_cast<Stored*>(packed.get());
  kernels.pack(n, packed_k, {b.data(), b_outer, b_inner}, stored);

  const int64_t c_stride = n + uniform(0, 3), guard = 67;
  const Sum poison = static_cast<Sum>(-12345.5);
  std::vector<Sum> c(m * c_stride + 2 * guard, poison);
  kernels.multiply({m,
                    n,
                    k,
                    {a.data(), a_stride, step, ids ? row_ids.data() : nullptr},
                    stored,
                    packed_k,
                    c.data() + guard,
                    c_stride,
                    workspace.get()});

  const auto exact_a = to_double(a), exact_b = to_double(b);
  std::vector<double> expected(m * n), sizes(m * n, 0);
  gemm_reference<double>(m, n, k, {exact_a.data(), a_stride, step, ids ? row_ids.data() : nullptr},
                         {exact_b.data(), b_outer, b_inner}, expected.data(), n, false);
  for (int64_t i = 0; i < m * n; ++i) {
    for (int64_t p = 0; p < k; ++p) {
      const int64_t row = ids ? row_ids[i / n] : i / n;
      sizes[i] += std::abs(exact_a[row * a_stride + p * step] * exact_b[i % n * b_outer + p * b_inner]);
    }
  }
  const double spacing = std::is_same_v<T, double> ? 0x1p-50 : 0x1p-21;
  for (int64_t at = 0; at < static_cast<int64_t>(c.size()); ++at) {
    const int64_t i = (at - guard) / c_stride, j = (at - guard) % c_stride;
    const bool inside = at >= guard && i < m && j < n;
    const bool right =
        inside ? std::abs(c[at] - expected[i * n + j]) <= spacing * (sizes[i * n + j] + 1e-30) : c[at] == poison;
    if (right) continue;
    if (++failures > 20) return;
    std::printf("isa %d, T %zu bytes, stored %zu, m %ld n %ld k %ld of %ld: c[%ld] is %g\n", static_cast<int>(isa),
                sizeof(T), sizeof(Stored), m, n, k, packed_k, at - guard, static_cast<double>(c[at]));
    return;
  }
}

template <class T, class Stored>
void run_all(CpuIsa isa) {
  const int64_t sizes[] = {1, 2, 13, 14, 15, 29, 40}, columns[] = {1, 15, 16, 17, 33, 48, 200};
  const int64_t depths[] = {0, 1, 2, 31, 255, 256, 257, 511, 512, 513, 1100};
  for (int repeat = 0; repeat < 60; ++repeat) {
    run_case<T, Stored>(isa, sizes[uniform(0, 6)], columns[uniform(0, 6)], depths[uniform(0, 10)], uniform(0, 1),
                        uniform(0, 1), uniform(0, 1), uniform(0, 1));
  }
  run_case<T, Stored>(isa, 300, 20, 40, false, true, false, false);  // more rows than one block
}

}  // namespace

int main() {
  for (const CpuIsa isa : all_cpu_isas) {
    if (isa > detected_cpu_isa()) continue;
    run_all<float, float>(isa);
    run_all<double, double>(isa);
    run_all<bfloat16, bfloat16>(isa);
    run_all<half, half>(isa);
    run_all<float, int8_t>(isa);
    run_all<bfloat16, int8_t>(isa);
    run_all<half, int8_t>(isa);
  }
  std::printf(failures ? "packed_gemm: %d failures\n" : "packed_gemm: ok\n", failures);
  return failures != 0;
}
