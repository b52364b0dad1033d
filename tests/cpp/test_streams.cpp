// Stream steps on the CPU, forward: against the definitions in double for every dtype, mixer and instruction set, the
// same bits on several threads as on one, fused as unfused, and nothing written beside the results.
#include "anabranch/mixers/streams_cpu.hpp"
#include "stream_case.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

template <class T>
class Forward {
  using Sum = accumulate_t<T>;

 public:
  explicit Forward(const StepCase& of) : c(of), given(of), projection(given.projection(of)) {
    c.name_context<T>();
  }

  void run() {
    check_pre(false);
    check_pre(true);
    check_post();
    if (c.o.weighted && c.shape.tokens > 1) check_nan_token();
  }

 private:
  /// u, coefficients and statistics.
  Results pre(const std::vector<T>& x, const Sum* lag) const {
    Guarded<T> u(c.stream(), 1);
    Guarded<Sum> coefficients(c.shape.tokens * c.size(), 1), statistics(c.shape.tokens * c.kept(), 1);
    stream_pre_cpu<T>(c.shape, projection, x.data(), lag, u.data(), coefficients.data(),
                      c.o.weighted ? statistics.data() : nullptr);
    return Results().add(u).add(coefficients).add(statistics);
  }

  void check_pre(bool lagged) const {
    const StepOperands<double> exact(given);
    std::vector<double> u(c.stream()), coefficients(c.shape.tokens * c.size()), statistics(c.shape.tokens * c.kept());
    stream_pre_reference(c.shape, exact.projection(c), exact.x.data(), lagged ? exact.before.data() : nullptr, u.data(),
                         coefficients.data(), statistics.data());
    const Sum* const lag = lagged ? given.before.data() : nullptr;
    on_every_cpu_isa([&] {
      on_several_threads([&] { return pre(given.x, lag); },
                         [&](const Results& found) {
                           expect_close<T>(found[0], u, units, "u");
                           expect_close<Sum>(found[1], coefficients, fine_units, "coefficients");
                           expect_close<Sum>(found[2], statistics, fine_units, "statistics");
                         });
    });
  }

  /// stream_post, and both halves at once: the same bits as one after the other.
  void check_post() const {
    const StepOperands<double> exact(given);
    std::vector<double> wanted(c.streams());
    stream_post_reference(c.shape, exact.x.data(), exact.y.data(), exact.before.data(), wanted.data());
    const auto post = [&] {
      Guarded<T> out(c.streams(), 1);
      stream_post_cpu<T>(c.shape, given.x.data(), given.y.data(), given.before.data(), out.data());
      return std::vector(1, out.written());
    };
    on_every_cpu_isa([&] {
      std::vector<T> out;
      on_several_threads(post, [&](const auto& found) {
        out = found[0];
        expect_close<T>(out, wanted, units, "out");
      });
      for (const bool lagged : {false, true}) {
        const auto apart = pre(out, lagged ? given.before.data() : nullptr);
        on_several_threads([&] { return post_pre(lagged); },
                           [&](const Results& found) {
                             expect(same_bits(found[0], converted<double>(out)), "out is another when fused");
                             for (size_t i = 0; i < apart.size(); ++i) {
                               expect(same_bits(found[i + 1], apart[i]), "the next step is another when fused");
                             }
                           });
      }
    });
  }

  Results post_pre(bool lagged) const {
    Guarded<T> out(c.streams(), 1), u(c.stream(), 1);
    Guarded<Sum> coefficients(c.shape.tokens * c.size(), 1), statistics(c.shape.tokens * c.kept(), 1);
    stream_post_pre_cpu<T>(c.shape, given.x.data(), given.y.data(), given.before.data(), projection, lagged, out.data(),
                           u.data(), coefficients.data(), c.o.weighted ? statistics.data() : nullptr);
    return Results().add(out).add(u).add(coefficients).add(statistics);
  }

  /// A token with NaN is NaN where it reads it, and no other is touched.
  void check_nan_token() const {
    const int64_t token = c.shape.tokens / 2;
    auto x = given.x;
    x[token * c.shape.width()] = T(static_cast<Sum>(NAN));
    on_every_cpu_isa([&] {
      const Results before = pre(given.x, nullptr), after = pre(x, nullptr);
      for (size_t i = 0; i < before.size(); ++i) {
        const int64_t width = before[i].size() / c.shape.tokens;
        for (int64_t k = 0; k < static_cast<int64_t>(before[i].size()); ++k) {
          expect(k / width == token || before[i][k] == after[i][k], "NaN of one token reached another");
        }
      }
      expect(std::isnan(after[0][token * c.shape.channels]), "u of a NaN is not NaN");
    });
  }

  static constexpr double units = sizeof(T) == 2 ? 2 : 64, fine_units = 64;

  const StepCase c;
  const StepOperands<T> given;
  const StreamProjection<T> projection;
};

/// Streams larger than the caches are stored past them where they are aligned, with the same bits.
template <class T>
void check_streaming() {
  constexpr int64_t channels = 64, n = 4;
  const int64_t tokens = detail::kStreamingBytes / (channels * n * static_cast<int64_t>(sizeof(T)));
  const StepCase c{{tokens, n, channels}, {.mixer = MixerKind::identity, .weighted = false}};
  c.name_context<T>();
  const StepOperands<T> given(c);
  on_every_cpu_isa([&] {
    std::vector<T> parts;
    for (int64_t first = 0; first < tokens; first += tokens / 4) {
      Guarded<T> out(c.streams() / 4);
      stream_post_cpu<T>({tokens / 4, n, channels}, given.x.data() + first * n * channels,
                         given.y.data() + first * channels, given.before.data() + first * c.size(), out.data());
      const auto written = out.written();
      parts.insert(parts.end(), written.begin(), written.end());
    }
    for (const int64_t shift : {0, 1}) {
      Guarded<T> out(c.streams(), shift);
      stream_post_cpu<T>(c.shape, given.x.data(), given.y.data(), given.before.data(), out.data());
      expect(same_bits(out.written(), parts), "streams stored past the caches have other bits");
    }
  });
}

template <class T>
void check_dtype() {
  for (const StepCase& c : every_mixer()) Forward<T>(c).run();
  for (const StepCase& c : large_and_empty()) Forward<T>(c).run();
  check_streaming<T>();
}

}  // namespace

int main() {
  check_dtype<float>();
  check_dtype<bfloat16>();
  if (every_dtype) {
    check_dtype<double>();
    check_dtype<half>();
  }
  std::puts("streams: ok");
}
