// Low-rank residuals on the harness, forward and backward, against the definition in double.
#include "anabranch/skip/branch_backward_sm90.cuh"
#include "anabranch/skip/lowrank_residual.cuh"
#include "gated_ffn_case.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

struct Shape {
  int64_t groups, rows, features, rank;
  NormKind norm = NormKind::none;
  bool adds_x = true, transposed = false;
  Activation activation = Activation::silu;  // smooth: in 16 bits a kink may be passed by rounding
};

template <class T>
LowRankResidual<T> problem_of(const Shape& s, const T* x, const T* norm_weight, const T* norm_bias, const T* down,
                              const T* up) {
  LowRankResidual<T> out{};
  const int64_t cells = s.rank * s.features;
  out.x = x;
  out.num_groups = s.groups;
  out.rows_per_group = s.rows;
  out.features = s.features;
  out.norm = {s.norm, norm_weight, s.norm == NormKind::layer ? norm_bias : nullptr, 1e-5};
  out.ffn.gate_up = {down, cells, s.transposed ? 1 : s.features, s.transposed ? s.rank : 1, nullptr};
  out.ffn.down = {up, cells, s.transposed ? 1 : s.rank, s.transposed ? s.features : 1, nullptr};
  out.ffn.intermediate = s.rank;
  out.ffn.activation = s.activation;
  out.ffn.normed = s.norm != NormKind::none;
  out.ffn.scale = 0.5f;
  out.adds_x = s.adds_x;
  return out;
}

template <class T>
std::vector<double> wide(const Guarded<T>& values) {
  std::vector<double> out;
  for (const T value : values.values()) out.push_back(static_cast<accumulate_t<T>>(value));
  return out;
}

template <class T>
void check(const Shape& s, std::mt19937& random, int wanted = 31) {
  using Sum = accumulate_t<T>;
  const int64_t rows = s.groups * s.rows, n = s.features, cells = s.groups * s.rank * n;
  Guarded<T> x(random_values<T>(rows * n, random)), dy(random_values<T>(rows * n, random));
  Guarded<T> norm_weight(random_values<T>(n, random)), norm_bias(random_values<T>(n, random));
  std::vector<T> down_values = random_values<T>(cells, random), up_values = random_values<T>(cells, random);
  for (T& value : down_values) value = T(static_cast<Sum>(value) / static_cast<Sum>(std::sqrt(n)));
  for (T& value : up_values) value = T(static_cast<Sum>(value) / static_cast<Sum>(std::sqrt(s.rank)));
  Guarded<T> down(down_values), up(up_values);
  const auto problem = problem_of(s, x.data(), norm_weight.data(), norm_bias.data(), down.data(), up.data());
  const auto x64 = wide(x), dy64 = wide(dy), weight64 = wide(norm_weight), bias64 = wide(norm_bias);
  const auto down64 = wide(down), up64 = wide(up);
  const auto exact = problem_of(s, x64.data(), weight64.data(), bias64.data(), down64.data(), up64.data());
  const double units = sizeof(T) < 4 ? 8 : 400;

  const auto nan = [](int64_t count) { return std::vector<T>(static_cast<size_t>(count), T(NAN)); };
  const auto sums = [](int64_t count) { return std::vector<Sum>(static_cast<size_t>(count), Sum(NAN)); };
  Guarded<int32_t> tables(lowrank_tables(s.groups));
  Guarded<T> normed(nan(rows * n)), hidden(nan(rows * s.rank)), dpre(nan(rows * s.rank)), dnormed(nan(rows * n));
  Guarded<T> y(nan(rows * n)), pre_activation(nan(rows * s.rank));
  Guarded<Sum> scales(sums(rows)), parts(sums(norm_parts(rows, n)));
  Guarded<RowMoments<Sum>> moments(rows);
  LowRankScratch<T> scratch{};
  scratch.tables = tables.data();
  scratch.normed = normed.data();
  scratch.hidden = hidden.data();
  lowrank_residual_cuda(problem, scratch, y.data(), pre_activation.data(), nullptr);
  std::vector<double> expected(rows * n);
  lowrank_residual_reference(exact, expected.data());
  expect_near(y, expected, units, "y");

  scratch.dpre_activation = dpre.data();
  scratch.scales = scales.data();
  scratch.dnormed = dnormed.data();
  scratch.moments = moments.data();
  scratch.norm_parts = parts.data();
  Guarded<T> dx(rows * n), ddown(cells), dup(cells), dweight(n), dbias(n);
  const auto pick = [&](int bit, Guarded<T>& buffer) { return wanted >> bit & 1 ? buffer.data() : nullptr; };
  const auto like = [](const auto& linear, auto* weight) {
    return ExpertLinear<std::remove_pointer_t<decltype(weight)>>{weight, linear.expert_stride, linear.out_stride,
                                                                 linear.in_stride, nullptr};
  };
  lowrank_residual_backward_cuda<T>(problem, dy.data(), pre_activation.data(), scratch,
                                    {pick(0, dx), pick(3, dweight), pick(4, dbias),
                                     like(problem.ffn.gate_up, pick(1, ddown)), like(problem.ffn.down, pick(2, dup))},
                                    nullptr);
  std::vector<double> dx64(rows * n), ddown64(cells), dup64(cells), dweight64(n), dbias64(n);
  lowrank_residual_backward_reference<double>(
      exact, dy64.data(),
      {dx64.data(), dweight64.data(), dbias64.data(), like(exact.ffn.gate_up, ddown64.data()),
       like(exact.ffn.down, dup64.data())});
  if (wanted & 1) expect_near(dx, dx64, units, "dx");
  if (wanted & 2) expect_near(ddown, ddown64, units, "ddown_proj");
  if (wanted & 4) expect_near(dup, dup64, units, "dup_proj");
  if (wanted & 8) expect_near(dweight, dweight64, units, "dnorm_weight");
  if (wanted & 16) expect_near(dbias, dbias64, units, "dnorm_bias");
}

template <class T>
void check_dtype(std::mt19937& random) {
  const auto some = [&] { return random() % 3 ? 31 : static_cast<int>(random() % 32); };
  check<T>({.groups = 3, .rows = 70, .features = 72, .rank = 5, .norm = NormKind::rms}, random, some());
  check<T>({.groups = 2,
            .rows = 3,
            .features = 33,
            .rank = 70,
            .norm = NormKind::layer,
            .adds_x = false,
            .transposed = true,
            .activation = Activation::gelu},
           random, some());
  check<T>({.groups = 40, .rows = 1, .features = 8, .rank = 2}, random, some());
  check<T>({.groups = 2, .rows = 0, .features = 8, .rank = 2, .norm = NormKind::rms}, random, some());
  check<T>({.groups = 0, .rows = 4, .features = 8, .rank = 2, .norm = NormKind::rms}, random, some());
}

}  // namespace

int main() {
  unsigned round = 0;
  for_each_schedule([&] {
    std::mt19937 random(++round);
    if (round % 2 == 0) {  // each dtype in every second thread order
      check_dtype<float>(random);
      check_dtype<half>(random);
    } else {
      check_dtype<double>(random);
      check_dtype<bfloat16>(random);
    }
  });
  std::puts("lowrank_residual: ok");
}
