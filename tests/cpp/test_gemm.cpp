// gemm() against gemm_reference in double: every type, every instruction set, random shapes, strides and ids. Operands
// end where an unreadable page begins and c lies between guard values, so reading or writing one element too many
// shows.
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

template <class T>
void run_case(Buffers& buffers, int64_t m, int64_t n, int64_t k, Form a_form, Form b_form, unsigned ids) {
  using Sum = accumulate_t<T>;
  const RandomOperand<T> a(buffers.a, m, k, a_form, ids & 1, ids & 2), b(buffers.b, n, k, b_form, ids & 4, ids & 8);
  const bool accumulate = uniform(0, 1);
  const int64_t c_stride = n + uniform(n == 0, 3), guard = 67;
  const Sum poison = static_cast<Sum>(-12345.5);

  std::vector<Sum> before(static_cast<std::size_t>(m * c_stride + 2 * guard), poison);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j)
      before[guard + i * c_stride + j] =
          accumulate ? static_cast<Sum>(uniform(-4, 4)) : std::numeric_limits<Sum>::quiet_NaN();

  std::vector<double> expected(static_cast<std::size_t>(m * n)), scale(expected.size());
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = accumulate ? before[guard + i * c_stride + j] : 0.0, magnitude = std::abs(sum);
      for (int64_t p = 0; p < k; ++p) {
        const double product =
            static_cast<double>(static_cast<Sum>(a.operand(i, p))) * static_cast<Sum>(b.operand(j, p));
        sum += product, magnitude += std::abs(product);
      }
      expected[i * n + j] = sum, scale[i * n + j] = magnitude;
    }
  }

  std::vector<Sum> first;
  for (int isa = 0; isa <= static_cast<int>(detected_cpu_isa()); ++isa) {
    set_cpu_isa(static_cast<CpuIsa>(isa));
    std::memset(buffers.workspace.last<char>(gemm_workspace_bytes), 0xff, gemm_workspace_bytes);  // NaN in every type
    std::vector<Sum> c = before;
    gemm<T>(m, n, k, a.operand, b.operand, c.data() + guard, c_stride, accumulate,
            buffers.workspace.last<char>(gemm_workspace_bytes));
    const char* name = cpu_isa_name(static_cast<CpuIsa>(isa)).data();
    for (int64_t at = 0; at < static_cast<int64_t>(c.size()); ++at) {
      const int64_t i = (at - guard) / c_stride, j = (at - guard) % c_stride;
      if (at < guard || at >= guard + m * c_stride || j >= n) {
        CHECK(c[at] == poison, "%s m=%ld n=%ld k=%ld forms %d %d ids %u: wrote outside at %ld", name, m, n, k,
              static_cast<int>(a_form), static_cast<int>(b_form), ids, at);
        continue;
      }
      const double rounding = std::numeric_limits<Sum>::epsilon() * (2 + std::sqrt(static_cast<double>(k)));
      CHECK(std::abs(c[at] - expected[i * n + j]) <= rounding * scale[i * n + j] + 1e-36,
            "%s size %zu m=%ld n=%ld k=%ld forms %d %d ids %u accumulate %d: c(%ld, %ld) is %g, must be %g", name,
            sizeof(T), m, n, k, static_cast<int>(a_form), static_cast<int>(b_form), ids, accumulate, i, j,
            static_cast<double>(c[at]), expected[i * n + j]);
    }
    std::vector<Sum> again = before;
    gemm<T>(m, n, k, a.operand, b.operand, again.data() + guard, c_stride, accumulate,
            buffers.workspace.last<char>(gemm_workspace_bytes));
    CHECK(std::memcmp(c.data(), again.data(), c.size() * sizeof(Sum)) == 0, "%s: a second run differs", name);
  }
}

template <class T>
void run_type(Buffers& buffers, int rounds) {
  const auto form = [] { return static_cast<Form>(uniform(0, static_cast<int>(Form::num_forms) - 1)); };
  for (int round = 0; round < rounds; ++round) {
    run_case<T>(buffers, uniform(0, 40), uniform(0, 70), uniform(0, 90), form(), form(),
                static_cast<unsigned>(uniform(0, 15)));
    // The forms that the rooms use, where the fast paths are; ids on every axis that keeps them fast.
    const auto some_of = [](unsigned bits) { return static_cast<unsigned>(uniform(0, 15)) & bits; };
    run_case<T>(buffers, uniform(1, 20), uniform(1, 200), uniform(1, 300), Form::k_contiguous, Form::k_contiguous,
                some_of(1 | 4));
    run_case<T>(buffers, uniform(1, 40), uniform(1, 200), uniform(1, 300), Form::k_contiguous, Form::outer_contiguous,
                some_of(1 | 8));
    run_case<T>(buffers, uniform(1, 90), uniform(1, 200), uniform(1, 100), Form::outer_contiguous,
                Form::outer_contiguous, some_of(2 | 8));
  }
  // Across the borders of the blocks of m, n and k.
  run_case<T>(buffers, 530, 50, 530, Form::k_contiguous, Form::k_contiguous, 1);
  run_case<T>(buffers, 3, 49, 5000, Form::k_contiguous, Form::k_contiguous, 1);
  run_case<T>(buffers, 19, 800, 261, Form::k_contiguous, Form::outer_contiguous, 1);
  run_case<T>(buffers, 261, 790, 9, Form::outer_contiguous, Form::outer_contiguous, 10);
  run_case<T>(buffers, 17, 33, 1031, Form::strided, Form::strided, 15);
}

/// The padding of the packed panels must never meet an infinity of a neighbour.
void run_infinities(Buffers& buffers) {
  for (int isa = 0; isa <= static_cast<int>(detected_cpu_isa()); ++isa) {
    set_cpu_isa(static_cast<CpuIsa>(isa));
    for (int64_t m : {1, 5, 9, 33}) {
      const int64_t n = 7, k = 3;
      std::vector<bfloat16> a(static_cast<std::size_t>(m * k), bfloat16(1.0f)), b(n * k, bfloat16(2.0f));
      a[0] = bfloat16(std::numeric_limits<float>::infinity());
      std::vector<float> c(static_cast<std::size_t>(m * n));
      gemm<bfloat16>(m, n, k, {a.data(), k, 1}, {b.data(), k, 1}, c.data(), n, false,
                     buffers.workspace.last<char>(gemm_workspace_bytes));
      for (int64_t at = 0; at < m * n; ++at)
        CHECK(at < n ? std::isinf(c[at]) : c[at] == 6.0f, "m=%ld: c[%ld] is %g", m, at, static_cast<double>(c[at]));
    }
  }
}

void run_isa_choice() {
  for (CpuIsa isa : all_cpu_isas) {
    bool refused = false;
    try {
      set_cpu_isa(isa);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    CHECK(refused == (isa > detected_cpu_isa()), "set_cpu_isa(%s)", cpu_isa_name(isa).data());
    CHECK(refused || cpu_isa() == isa, "cpu_isa() is not the one set");
  }
}

}  // namespace

int main() {
  std::printf("detected %s, in use %s\n", cpu_isa_name(detected_cpu_isa()).data(), cpu_isa_name(cpu_isa()).data());
  Buffers buffers;
  run_type<float>(buffers, 60);
  run_type<double>(buffers, 60);
  run_type<bfloat16>(buffers, 60);
  run_type<half>(buffers, 60);
  run_infinities(buffers);
  run_isa_choice();
  std::printf(failures ? "%d failures\n" : "all equal\n", failures);
  return failures != 0;
}
