// Low-rank residuals on the CPU, forward and backward: against the definitions in double for every dtype, option and
// instruction set, the same bits on several threads as on one, and each gradient alone as among all.
#include "anabranch/skip/lowrank_residual_cpu.hpp"
#include "cpu_kernels.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

struct Shape {
  int64_t groups, rows, features, rank;
};

struct Options {
  bool gated, biased, turned;
  NormKind norm;
  bool norm_weight, norm_bias, adds_x;
  Activation activation;
};

/// Enough for five workers in every loop; more rows in a group than one chunk; no rows; no groups; one row.
constexpr Shape shapes[] = {{4, 160, 200, 48}, {2, 300, 37, 5}, {3, 0, 8, 2}, {0, 4, 8, 2}, {1, 1, 5, 1}};
constexpr Options options[] = {
    {false, false, false, NormKind::none, false, false, true, Activation::identity},
    {false, false, true, NormKind::rms, true, false, true, Activation::silu},
    {false, true, false, NormKind::layer, true, true, false, Activation::gelu},
    {true, true, true, NormKind::layer, false, false, true, Activation::gelu_tanh},
};
constexpr float untouched = 0.5f;  // in every dtype

template <class T>
struct Operands {
  Operands(const Shape& s, int64_t parts)
      : x(random_values<T>(s.groups * s.rows * s.features)),
        first(random_values<T>(s.groups * parts * s.rank * s.features, 1 / std::sqrt(s.features))),
        first_bias(random_values<T>(s.groups * parts * s.rank, 0.5)),
        second(random_values<T>(s.groups * s.features * s.rank, 1 / std::sqrt(s.rank))),
        second_bias(random_values<T>(s.groups * s.features, 0.5)),
        norm_weight(random_values<T>(s.features)),
        norm_bias(random_values<T>(s.features)),
        dy(random_values<T>(s.groups * s.rows * s.features)) {}
  template <class From>
  explicit Operands(const Operands<From>& from)
      : x(converted<T>(from.x)),
        first(converted<T>(from.first)),
        first_bias(converted<T>(from.first_bias)),
        second(converted<T>(from.second)),
        second_bias(converted<T>(from.second_bias)),
        norm_weight(converted<T>(from.norm_weight)),
        norm_bias(converted<T>(from.norm_bias)),
        dy(converted<T>(from.dy)) {}

  std::vector<T> x, first, first_bias, second, second_bias, norm_weight, norm_bias, dy;
};

/// One matrix [out, in] per group, turned where `turned`.
template <class T>
ExpertLinear<T> matrices(T* weight, int64_t out, int64_t in, bool turned, T* bias) {
  return {weight, out * in, turned ? 1 : in, turned ? out : 1, bias};
}

struct Case {
  Shape s;
  Options o;
  int64_t parts = o.gated ? 2 : 1;

  template <class T>
  LowRankResidual<T> problem(const Operands<T>& from) const {
    const RowNorm<T> norm{o.norm, o.norm_weight ? from.norm_weight.data() : nullptr,
                          o.norm_bias ? from.norm_bias.data() : nullptr, 1e-3};
    const FfnBranch<T> branch{
        matrices(from.first.data(), parts * s.rank, s.features, o.turned, o.biased ? from.first_bias.data() : nullptr),
        matrices(from.second.data(), s.features, s.rank, o.turned, o.biased ? from.second_bias.data() : nullptr),
        s.rank,
        o.activation,
        o.gated,
        o.norm != NormKind::none,
        accumulate_t<T>(0.5)};
    return {from.x.data(), s.groups, s.rows, s.features, norm, branch, o.adds_x};
  }
};

template <class T>
struct Gradients {
  std::vector<T> x, norm_weight, norm_bias, first, first_bias, second, second_bias;
  static constexpr const char* names[] = {"dx",          "dnorm_weight", "dnorm_bias",  "dfirst",
                                          "dfirst_bias", "dsecond",      "dsecond_bias"};

  explicit Gradients(const Case& c)
      : x(filled(c.s.groups * c.s.rows * c.s.features)),
        norm_weight(filled(c.s.features)),
        norm_bias(filled(c.s.features)),
        first(filled(c.s.groups * c.parts * c.s.rank * c.s.features)),
        first_bias(filled(c.s.groups * c.parts * c.s.rank)),
        second(filled(c.s.groups * c.s.features * c.s.rank)),
        second_bias(filled(c.s.groups * c.s.features)) {}

  LowRankResidualGradients<T> places(const Case& c) {
    LowRankResidualGradients<T> to{};
    to.x = x.data();
    if (c.o.norm != NormKind::none) to.norm_weight = norm_weight.data(), to.norm_bias = norm_bias.data();
    to.gate_up = matrices(first.data(), c.parts * c.s.rank, c.s.features, c.o.turned, first_bias.data());
    to.down = matrices(second.data(), c.s.features, c.s.rank, c.o.turned, second_bias.data());
    return to;
  }
  std::vector<std::vector<T>> all() const {
    return {x, norm_weight, norm_bias, first, first_bias, second, second_bias};
  }

 private:
  static std::vector<T> filled(int64_t count) { return std::vector<T>(count, T(untouched)); }
};

template <class T>
void check_case(const Case& c) {
  context = std::string("lowrank_residual, ") + type_name<T>() + ", " + std::to_string(c.s.groups) + " groups of " +
            std::to_string(c.s.rows) + " rows, norm " + std::to_string(static_cast<int>(c.o.norm));
  const double units = sizeof(T) == 2 ? 4 : 64;
  const Operands<T> operands(c.s, c.parts);
  const Operands<double> exact(operands);
  const int64_t rows = c.s.groups * c.s.rows;
  std::vector<double> wanted(rows * c.s.features);
  lowrank_residual_reference(c.problem(exact), wanted.data());
  Gradients<double> gradients(c);
  lowrank_residual_backward_reference(c.problem(exact), exact.dy.data(), gradients.places(c));
  const auto wanted_gradients = gradients.all();
  const LowRankResidual<T> problem = c.problem(operands);
  on_every_cpu_isa([&] {
    std::vector<T> saved(rows * c.parts * c.s.rank);
    for (T* const pre_activation : {static_cast<T*>(nullptr), saved.data()}) {
      const auto forward = [&] {
        std::vector y(1, std::vector<T>(rows * c.s.features, T(untouched)));
        lowrank_residual_cpu(problem, y[0].data(), pre_activation);
        return y;
      };
      on_several_threads(forward, [&](const auto& found) { expect_close<T>(found[0], wanted, units, "y"); });
    }
    const auto backward = [&](const auto& places_of) {
      Gradients<T> to(c);
      lowrank_residual_backward_cpu(problem, operands.dy.data(), saved.data(), places_of(to.places(c)));
      return to.all();
    };
    std::vector<std::vector<T>> all;
    on_several_threads([&] { return backward([](const auto& every) { return every; }); },
                       [&](const auto& found) {
                         all = found;
                         for (size_t i = 0; i < found.size(); ++i) {
                           expect_close<T>(found[i], wanted_gradients[i], 2 * units, Gradients<T>::names[i]);
                         }
                       });
    const auto untouched_gradients = Gradients<T>(c).all();
    for (size_t i = 0; i < all.size(); ++i) {
      const auto found = backward([i](const auto& every) {
        LowRankResidualGradients<T> one{};
        if (i == 0) one.x = every.x;
        if (i == 1) one.norm_weight = every.norm_weight;
        if (i == 2) one.norm_bias = every.norm_bias;
        if (i == 3) one.gate_up = every.gate_up, one.gate_up.bias = nullptr;
        if (i == 4) one.gate_up.bias = every.gate_up.bias;
        if (i == 5) one.down = every.down, one.down.bias = nullptr;
        if (i == 6) one.down.bias = every.down.bias;
        return one;
      });
      for (size_t k = 0; k < all.size(); ++k) {
        expect(same_bits(found[k], k == i ? all[k] : untouched_gradients[k]),
               std::string(Gradients<T>::names[k]) + (k == i ? " differs alone" : " was written unasked"));
      }
    }
  });
}

}  // namespace

int main() {
  for (const Shape& shape : shapes) {
    for (const Options& o : options) {
      const Case c{shape, o};
      check_case<float>(c);
      check_case<bfloat16>(c);
      if (!every_dtype) continue;
      check_case<double>(c);
      check_case<half>(c);
    }
  }
  std::printf("lowrank_residual: ok\n");
}
