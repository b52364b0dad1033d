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
  explicit Forward(const StepCase& of) : c(of), given(of), projection(given.projection(of)) { c.name_context<T>(); }

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
        bool same = true;
        for (int64_t k = 0; k < static_cast<int64_t>(before[i].size()); ++k) {
          if (k / width != token) same = same && before[i][k] == after[i][k];
        }
        expect(same, "NaN of one token reached another");
      }
      expect(std::isnan(after[0][token * c.shape.channels]), "u of a NaN is not NaN");
    });
  }

  static constexpr double units = sizeof(T) == 2 ? 0.55 : 64, fine_units = 64;

  const StepCase c;
  const StepOperands<T> given;
  const StreamProjection<T> projection;
};

/// Streams that no cache will hold are written past the caches where they are aligned: with the bits of their halves,
/// which are not.
template <class T>
void check_streaming() {
  const StepCase c = streaming_case<T>();
  const int64_t half = c.shape.tokens / 2;
  c.name_context<T>();
  const StepOperands<T> given(c);
  const auto step = [&](int64_t first, int64_t tokens, int64_t shift) {
    const StreamShape shape{tokens, c.shape.streams, c.shape.channels};
    const T *const x = given.x.data() + first * c.shape.width(), *const y = given.y.data() + first * c.shape.channels;
    const auto* const before = given.before.data() + first * c.size();
    Guarded<T> out(tokens * c.shape.width(), shift), fused(tokens * c.shape.width(), shift);
    Guarded<T> u(tokens * c.shape.channels);
    Guarded<accumulate_t<T>> next(tokens * c.size()), statistics(tokens * c.kept());
    stream_post_cpu<T>(shape, x, y, before, out.data());
    stream_post_pre_cpu<T>(shape, x, y, before, given.projection(c), false, fused.data(), u.data(), next.data(),
                           statistics.data());
    return Results().add(out).add(fused).add(u).add(next).add(statistics);
  };
  on_every_cpu_isa([&] {
    const Results low = step(0, half, 0), high = step(half, half, 0);
    for (const int64_t shift : {0, 1}) {
      const Results whole = step(0, c.shape.tokens, shift);
      for (size_t i = 0; i < whole.size(); ++i) {
        std::vector<double> halves = low[i];
        halves.insert(halves.end(), high[i].begin(), high[i].end());
        expect(same_bits(whole[i], halves), "result " + std::to_string(i) + " has other bits past the caches");
      }
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
