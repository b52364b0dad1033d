// gemm_stored() against sums in double: every type, every instruction set, k up to the largest, columns that end inside
// a vector. Operands end where an unreadable page begins; so does the result, and what lies between its rows is
// guarded.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "anabranch/core/cpu_features.hpp"
#include "gemm_operands.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

/// Half the spacing of T's numbers between 1 and 2.
template <class T>
constexpr double kRoundoff = std::is_same_v<T, double>     ? 0x1p-53
                             : std::is_same_v<T, float>    ? 0x1p-24
                             : std::is_same_v<T, bfloat16> ? 0x1p-8
                                                           : 0x1p-11;

template <class T>
void run_case(Buffers& buffers, GuardedBytes& results, int64_t m, int64_t n, int64_t k, Form a_form, Form b_form,
              unsigned ids) {
  using Sum = accumulate_t<T>;
  const RandomOperand<T> a(buffers.a, m, k, a_form, ids & 1, ids & 2), b(buffers.b, n, k, b_form, ids & 4, ids & 8);
  const int64_t stride = n + uniform(0, 3), size = (m - 1) * stride + n;  // the last row ends with its last column
  const T poison = T(-12345.5f);
  std::vector<T> first;
  for (int isa = 0; isa <= static_cast<int>(detected_cpu_isa()); ++isa) {
    set_cpu_isa(static_cast<CpuIsa>(isa));
    const char* name = cpu_isa_name(static_cast<CpuIsa>(isa)).data();
    T* const out = results.last<T>(static_cast<std::size_t>(size));
    std::vector<T> before;
    for (int repeat = 0; repeat < 2; ++repeat) {
      for (int64_t at = -64; at < size; ++at) out[at] = poison;
      std::memset(buffers.workspace.last<char>(gemm_workspace_bytes), repeat ? 0x11 : 0xff, gemm_workspace_bytes);
      gemm_stored<T>(m, n, k, a.operand, b.operand, out, stride, buffers.workspace.last<char>(gemm_workspace_bytes));
      if (repeat == 0) before.assign(out, out + size);
    }
    CHECK(std::memcmp(before.data(), out, before.size() * sizeof(T)) == 0, "%s: a second run differs", name);
    for (int64_t at = -64; at < size; ++at) {
      const int64_t i = at < 0 ? -1 : at / stride, j = at < 0 ? 0 : at % stride;
      if (i < 0 || j >= n) {
        CHECK(std::memcmp(&out[at], &poison, sizeof(T)) == 0, "%s size %zu m=%ld n=%ld k=%ld: wrote outside at %ld",
              name, sizeof(T), m, n, k, at);
        continue;
      }
      double sum = 0, magnitude = 0;
      for (int64_t p = 0; p < k; ++p) {
        const double product =
            static_cast<double>(static_cast<Sum>(a.operand(i, p))) * static_cast<Sum>(b.operand(j, p));
        sum += product, magnitude += std::abs(product);
      }
      const double summing = std::numeric_limits<Sum>::epsilon() * (2 + std::sqrt(static_cast<double>(k)));
      const double allowed = summing * magnitude + kRoundoff<T> * (1 + 1e-5) * std::abs(sum) + 0x1p-25;
      const double found = static_cast<Sum>(out[at]);
      CHECK(std::abs(found - sum) <= allowed, "%s size %zu m=%ld n=%ld k=%ld ids %u: (%ld, %ld) is %g, must be %g",
            name, sizeof(T), m, n, k, ids, i, j, found, sum);
    }
  }
}

template <class T>
void run_type(Buffers& buffers, GuardedBytes& results) {
  const auto form = [] { return static_cast<Form>(uniform(0, static_cast<int>(Form::num_forms) - 1)); };
  const auto ids = [] { return static_cast<unsigned>(uniform(0, 15)); };
  for (int round = 0; round < 40; ++round) {
    run_case<T>(buffers, results, uniform(1, 40), uniform(1, 70), uniform(1, 20), form(), form(), ids());
  }
  // As a weight gradient calls it: rows of both operands are contiguous, k is their number and goes through ids.
  for (const int64_t k : {1, 2, 3, 31, 64, 255, int(gemm_max_stored_k)}) {
    run_case<T>(buffers, results, uniform(1, 33), uniform(1, 99), k, Form::outer_contiguous, Form::outer_contiguous, 2);
  }
  for (int64_t n = 1; n <= 66; ++n) {  // every end of a row, of one and of two vectors
    run_case<T>(buffers, results, 3, n, 5, Form::outer_contiguous, Form::outer_contiguous, 8);
  }
  // Across the borders of the blocks of m and n.
  run_case<T>(buffers, results, 530, 19, 7, Form::outer_contiguous, Form::outer_contiguous, 0);
  run_case<T>(buffers, results, 5, 801, gemm_max_stored_k, Form::outer_contiguous, Form::k_contiguous, 0);
}

}  // namespace

int main() {
  Buffers buffers;
  GuardedBytes results(std::size_t{1} << 20);
  run_type<float>(buffers, results);
  run_type<double>(buffers, results);
  run_type<bfloat16>(buffers, results);
  run_type<half>(buffers, results);
  std::printf(failures ? "%d failures\n" : "all equal\n", failures);
  return failures != 0;
}
