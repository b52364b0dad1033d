// Matrices of every mixer on the CPU and their gradients: against the definition in double on every instruction set,
// the same bits on several threads as on one and whatever the neighbours are, and nothing written beside the results.
#include "anabranch/core/lanes_cpu.hpp"
#include "anabranch/mixers/streams_cpu.hpp"
#include "mixer_case.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

/// What detail::project and its gradient make of every row in double.
struct Wanted {
  std::vector<double> matrices, dlogits;
};

template <class V>
struct Batch {
  Batch(const Mixer& of, int64_t matrices, double spread)
      : mixer(of),
        count(matrices),
        logits(random_values<V>(matrices * of.num_logits(), spread)),
        upstream(random_values<V>(matrices * of.num_streams * of.num_streams)) {}

  Wanted wanted() const {
    const auto logits64 = converted<double>(logits), upstream64 = converted<double>(upstream);
    Wanted out{std::vector<double>(upstream.size()), std::vector<double>(logits.size())};
    std::vector<double> history(mixer.history_size());
    detail::dispatch_streams(mixer.num_streams, [&]<int n>() {
      double h[n][n], dh[n][n];
      for (int64_t b = 0; b < count; ++b) {
        const double* const own = logits64.data() + b * mixer.num_logits();
        detail::project<double, n>(mixer, own, h);
        std::memcpy(out.matrices.data() + b * n * n, h, sizeof(h));
        std::memcpy(dh, upstream64.data() + b * n * n, sizeof(dh));
        detail::project_backward<double, n>(mixer, own, h, dh, detail::History<double>{history.data(), 1},
                                            out.dlogits.data() + b * mixer.num_logits());
      }
    });
    return out;
  }

  /// Matrices and gradients of the rows from `first` on.
  std::vector<std::vector<V>> found(int64_t first = 0) const {
    const int64_t rows = count - first, size = mixer.num_streams * mixer.num_streams, width = mixer.num_logits();
    Guarded<V> matrices(rows * size, 1), dlogits(rows * width, 1);
    mix_matrix_cpu(mixer, rows, logits.data() + first * width, matrices.data());
    mix_matrix_backward_cpu(mixer, rows, upstream.data() + first * size, logits.data() + first * width, matrices.data(),
                            dlogits.data());
    return {matrices.written(), dlogits.written()};
  }

  const Mixer mixer;
  const int64_t count;
  std::vector<V> logits;
  const std::vector<V> upstream;
};

template <class V>
void name_context(const Mixer& mixer, int64_t count, double spread) {
  context = std::string("mix_matrix, ") + type_name<V>() + ", kind " + std::to_string(static_cast<int>(mixer.kind)) +
            ", " + std::to_string(count) + " of " + std::to_string(mixer.num_streams) + " streams, spread " +
            std::to_string(spread);
}

template <class V>
std::vector<V> rows_from(const std::vector<V>& values, int64_t row, int64_t count) {
  return {values.begin() + (count ? values.size() / count * row : 0), values.end()};
}

/// `units` for the matrices, eight times as many for the gradients.
template <class V>
void check(const Mixer& mixer, int64_t count, double spread, double units) {
  name_context<V>(mixer, count, spread);
  const Batch<V> batch(mixer, count, spread);
  const Wanted wanted = batch.wanted();
  on_every_cpu_isa([&] {
    on_several_threads([&] { return batch.found(); },
                       [&](const auto& found) {
                         expect_close<V>(found[0], wanted.matrices, units, "matrices");
                         expect_close<V>(found[1], wanted.dlogits, 8 * units, "dlogits");
                         const int64_t first = std::min<int64_t>(count, 3);
                         const auto later = batch.found(first);
                         for (size_t i = 0; i < found.size(); ++i) {
                           expect(same_bits(later[i], rows_from(found[i], first, count)), "neighbours change bits");
                         }
                       });
  });
}

/// A logit that is not finite: its matrix is NaN, and all others are as they were.
template <class V>
void check_not_finite(const Mixer& mixer) {
  constexpr int64_t count = 37, row = 18;
  name_context<V>(mixer, count, 1);
  on_every_cpu_isa([&] {
    for (const double value : {HUGE_VAL, -HUGE_VAL, std::nan("")}) {
      Batch<V> batch(mixer, count, 1);
      const auto before = batch.found();
      batch.logits[row * mixer.num_logits() + random_bits() % mixer.num_logits()] = static_cast<V>(value);
      const auto after = batch.found();
      for (size_t i = 0; i < before.size(); ++i) {
        const size_t width = before[i].size() / count;
        bool others_same = true, own_nan = true;
        for (size_t k = 0; k < before[i].size(); ++k) {
          const bool same = std::memcmp(&after[i][k], &before[i][k], sizeof(V)) == 0;
          if (k / width != row) others_same = others_same && same;
          if (k / width == row) own_nan = own_nan && std::isnan(after[i][k]);
        }
        expect(others_same, "a logit that is not finite changed another matrix");
        expect(own_nan || i > 0, "a logit that is not finite left its matrix finite");
      }
    }
  });
}

/// The exact projection is doubly stochastic to its tolerance however wide the logits are.
template <class V>
void check_sums(int streams, double spread) {
  Mixer mixer = mixer_of(MixerKind::exact_sinkhorn, streams);
  mixer.tolerance = 1e-6;
  name_context<V>(mixer, 300, spread);
  const Batch<V> batch(mixer, 300, spread);
  on_every_cpu_isa([&] {
    const auto matrices = batch.found()[0];
    double worst = 0;
    for (size_t first = 0; first < matrices.size(); first += streams * streams) {
      for (int i = 0; i < streams; ++i) {
        double row = 0, column = 0;
        for (int j = 0; j < streams; ++j) {
          row += static_cast<double>(matrices[first + i * streams + j]);
          column += static_cast<double>(matrices[first + j * streams + i]);
        }
        for (const double sum : {row, column}) worst = std::abs(sum - 1) <= worst ? worst : std::abs(sum - 1);
      }
    }
    expect(worst <= 2e-6, "a row or column is off by " + std::to_string(worst * 1e6) + "e-6");
  });
}

template <class V>
void check_streams(MixerKind kind, int streams) {
  const bool exact = std::is_same_v<V, double>;
  Mixer mixer = mixer_of(kind, streams);
  for (const int64_t count : {0, 1, 37}) check<V>(mixer, count, 1, 64);
  if (mixer.num_logits()) check_not_finite<V>(mixer);
  mixer.transposed_logits = mixer.transposed_matrix = true;
  if (kind == MixerKind::sinkhorn) mixer.eps = 1e-6;
  check<V>(mixer, 20, 1, 64);
  mixer.transposed_logits = false;
  check<V>(mixer, 20, 1, 64);
  mixer.eps = 0;
  if (kind == MixerKind::sinkhorn) {
    check<V>(mixer, 70, 30, 1024);   // logarithms for some of the matrices in a vector
    check<V>(mixer, 20, 300, 8192);  // for all
    mixer.implicit_gradient = true;
    mixer.iterations = 200;
    check<V>(mixer, 20, 0.5, 64);
  }
  if (kind == MixerKind::exact_sinkhorn) {
    mixer.tolerance = exact ? 1e-12 : 1e-9;
    check<V>(mixer, 70, 8, 4096);
  }
  if (kind == MixerKind::exact_sinkhorn) {
    for (const double spread : {1, 10, 100}) check_sums<V>(streams, spread);
  }
  if (kind == MixerKind::cayley) check<V>(mixer, 20, 10, 1024);
  if (kind == MixerKind::grassmann) {
    mixer.rank = streams;
    check<V>(mixer, 20, 1, 8192);  // the gradient is zero times the inverse of any matrix
  }
}

/// Columns that depend on each other make a projector of a smaller rank, with no gradient to the later one.
template <class V>
void check_dependent_columns() {
  Mixer mixer = mixer_of(MixerKind::grassmann, 5);
  mixer.rank = 3;
  name_context<V>(mixer, 20, 1);
  Batch<V> batch(mixer, 20, 1);
  for (size_t i = 0; i < batch.logits.size(); i += 3) batch.logits[i + 1] = 2 * batch.logits[i];
  const Wanted wanted = batch.wanted();
  on_every_cpu_isa([&] {
    const auto found = batch.found();
    expect_close<V>(found[0], wanted.matrices, 64, "matrices");
    expect_close<V>(found[1], wanted.dlogits, 512, "dlogits");
    for (size_t i = 0; i < batch.logits.size(); i += 3) expect(found[1][i + 1] == 0, "a column without a gradient");
  });
}

/// The exponential of vectors, whose source is one for all instruction sets.
template <class V>
void check_exponential() {
  using Lanes = detail::Lanes<CpuIsa::portable, V>;
  context = std::string("exp_of, ") + type_name<V>();
  const double spacing = std::is_same_v<V, double> ? 0x1p-52 : 0x1p-23, far = std::is_same_v<V, double> ? 708 : 87;
  const auto exponential = [](double x) { return exp_of(Lanes(x)).v[Lanes::width - 1]; };
  long double worst = 0;
  for (double x = -far; x <= far; x += far / 5000) {
    const long double wanted = std::exp(static_cast<long double>(static_cast<V>(x)));
    worst = std::max(worst, std::abs(exponential(x) - wanted) / wanted);
  }
  expect(worst <= 2 * spacing, "off by " + std::to_string(static_cast<double>(worst / spacing)) + " units");
  expect(exponential(0) == 1 && exponential(-2 * far) == 0 && exponential(-HUGE_VAL) == 0, "1, or 0 far below");
  expect(std::isfinite(exponential(HUGE_VAL)) && exponential(HUGE_VAL) >= exponential(far), "the largest value");
  expect(std::isnan(exponential(std::nan(""))), "NaN");
}

template <class V>
void check_dtype() {
  check_exponential<V>();
  for (const MixerKind kind : mixer_kinds) {
    for (int streams = kMinStreams; streams <= kMaxStreams; ++streams) check_streams<V>(kind, streams);
    check<V>(mixer_of(kind, 3), 5200, 1, 1024);  // enough for five workers
  }
  check_dependent_columns<V>();
}

}  // namespace

int main() {
  check_dtype<float>();
  check_dtype<double>();
  std::puts("mix_matrix: ok");
}
