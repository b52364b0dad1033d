// Stream steps on the CPU, backward: against the definitions in double for every dtype, mixer and instruction set, with
// and without each upstream gradient, the same bits on several threads as on one, each gradient alone as among all,
// fused as unfused, and nothing written beside the results.
#include "anabranch/mixers/streams_backward_cpu.hpp"
#include "stream_case.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

constexpr unsigned every = ~0u;

/// What the two halves write, some of it: bit i of `wanted` is for result i.
template <class T>
struct PreResults {
  using Sum = accumulate_t<T>;
  static constexpr const char* names[] = {"dx", "dweight", "dscale", "dbias", "dlag"};
  static constexpr int count = 5;

  explicit PreResults(const StepCase& c)
      : x(c.streams(), 1),
        weight(c.weights(), 1),
        scale(c.logits(), 1),
        bias(c.logits(), 1),
        lag(c.shape.tokens * c.size(), 1) {}

  StreamPreGradients<T> places(unsigned wanted) {
    return {wanted & 1 ? x.data() : nullptr, wanted & 2 ? weight.data() : nullptr, wanted & 4 ? scale.data() : nullptr,
            wanted & 8 ? bias.data() : nullptr, wanted & 16 ? lag.data() : nullptr};
  }
  Results all() const { return Results().add(x).add(weight).add(scale).add(bias).add(lag); }

  Guarded<T> x;
  Guarded<Sum> weight, scale, bias, lag;
};

template <class T>
struct PostResults {
  using Sum = accumulate_t<T>;
  static constexpr const char* names[] = {"dx of post", "dy", "dcoefficients"};
  static constexpr int count = 3;

  explicit PostResults(const StepCase& c) : x(c.streams(), 1), y(c.stream(), 1), sums(c.shape.tokens * c.size(), 1) {}

  StreamPostGradients<T> places(unsigned wanted) {
    return {wanted & 1 ? x.data() : nullptr, wanted & 2 ? y.data() : nullptr, wanted & 4 ? sums.data() : nullptr};
  }
  Results all() const { return Results().add(x).add(y).add(sums); }

  Guarded<T> x, y;
  Guarded<Sum> sums;
};

template <class T>
class Backward {
  using Sum = accumulate_t<T>;

 public:
  explicit Backward(const StepCase& of)
      : c(of),
        given(of),
        exact(given),
        projection(given.projection(of)),
        coefficients(of.shape.tokens * of.size()),
        statistics(of.shape.tokens * of.kept()) {
    c.name_context<T>();
    std::vector<double> u(c.stream()), own(coefficients.size()), kept(statistics.size());
    stream_pre_reference(c.shape, exact.projection(c), exact.x.data(), nullptr, u.data(), own.data(), kept.data());
    coefficients = converted<Sum>(own), statistics = converted<Sum>(kept);
  }

  void run() {
    for (const bool lagged : {false, true}) {
      check_pre(lagged, 15);
      check_post_pre(lagged, 15);
    }
    check_post();
    if (c.shape.tokens > 100) return;
    for (const unsigned mask : {0u, 1u, 2u, 4u, 8u}) check_pre(mask % 3 == 1, mask);
    check_post_pre(false, 2);
    check_post_pre(true, 9);
  }

 private:
  /// What is asked for alone must have the bits it has among all; the rest must not be written.
  template <class Asked, class F>
  void check_alone(const Results& all, unsigned possible, const F& f) const {
    for (int i = 0; i < Asked::count; ++i) {
      if (!(possible >> i & 1)) continue;
      Asked alone(c);
      f(alone, 1u << i);
      const Results found = alone.all(), fresh = Asked(c).all();
      for (int k = 0; k < Asked::count; ++k) {
        expect(same_bits(found[k], k == i ? all[k] : fresh[k]),
               std::string(Asked::names[k]) + (k == i ? " differs alone" : " was written unasked"));
      }
    }
  }

  void pre(const std::vector<T>& x, bool lagged, unsigned mask, const StreamPreGradients<T>& to) const {
    stream_pre_backward_cpu<T>(c.shape, projection, given.upstream(mask), x.data(),
                               lagged ? given.before.data() : nullptr, coefficients.data(),
                               c.o.weighted ? statistics.data() : nullptr, to);
  }

  void check_pre(bool lagged, unsigned mask) const {
    const unsigned possible = lagged ? 31 : 15;
    const auto own = converted<double>(coefficients), kept = converted<double>(statistics);
    PreResults<double> to(c);
    stream_pre_backward_reference(c.shape, exact.projection(c), exact.upstream(mask), exact.x.data(),
                                  lagged ? exact.before.data() : nullptr, own.data(), kept.data(), to.places(possible));
    const Results wanted = to.all();
    const auto backward = [&] {
      PreResults<T> found(c);
      pre(given.x, lagged, mask, found.places(possible));
      return found.all();
    };
    on_every_cpu_isa([&] {
      on_several_threads(backward, [&](const Results& found) {
        expect_close<T>(found[0], wanted[0], units, PreResults<T>::names[0]);
        for (int i = 1; i < (lagged ? 5 : 4); ++i) {
          expect_close<Sum>(found[i], wanted[i], fine_units, PreResults<T>::names[i]);
        }
        if (mask != 15) return;
        check_alone<PreResults<T>>(found, possible, [&](PreResults<T>& alone, unsigned one) {
          pre(given.x, lagged, mask, alone.places(one));
        });
      });
    });
  }

  void post(const T* dout, const StreamPostGradients<T>& to) const {
    stream_post_backward_cpu<T>(c.shape, dout, given.x.data(), given.y.data(), given.before.data(), to);
  }

  void check_post() const {
    PostResults<double> to(c);
    stream_post_backward_reference(c.shape, exact.dx.data(), exact.x.data(), exact.y.data(), exact.before.data(),
                                   to.places(every));
    const Results wanted = to.all();
    const auto backward = [&] {
      PostResults<T> found(c);
      post(given.dx.data(), found.places(every));
      return found.all();
    };
    on_every_cpu_isa([&] {
      on_several_threads(backward, [&](const Results& found) {
        expect_close<T>(found[0], wanted[0], units, PostResults<T>::names[0]);
        expect_close<T>(found[1], wanted[1], units, PostResults<T>::names[1]);
        expect_close<Sum>(found[2], wanted[2], fine_units, PostResults<T>::names[2]);
        check_alone<PostResults<T>>(
            found, every, [&](PostResults<T>& alone, unsigned one) { post(given.dx.data(), alone.places(one)); });
      });
    });
  }

  /// The two halves at once must have the bits of one after the other.
  void check_post_pre(bool lagged, unsigned mask) const {
    const auto fused = [&](unsigned wanted_pre, unsigned wanted_post) {
      PreResults<T> first(c);
      PostResults<T> second(c);
      stream_post_pre_backward_cpu<T>(c.shape, given.x.data(), given.y.data(), given.before.data(), projection, lagged,
                                      given.upstream(mask), coefficients.data(),
                                      c.o.weighted ? statistics.data() : nullptr, first.places(wanted_pre & 15),
                                      second.places(wanted_post & 6));
      return Results().add(first.x).add(first.weight).add(first.scale).add(first.bias).add(second.y).add(second.sums);
    };
    on_every_cpu_isa([&] {
      std::vector<T> between(c.streams());
      stream_post_cpu<T>(c.shape, given.x.data(), given.y.data(), given.before.data(), between.data());
      PreResults<T> first(c);
      pre(between, lagged, mask, first.places(lagged ? 31 : 15));
      PostResults<T> second(c);
      post(first.x.data(), second.places(6));
      const std::vector<Sum> lag = first.lag.written();
      for (size_t i = 0; lagged && i < lag.size(); ++i) second.sums.data()[i] += lag[i];
      const Results apart =
          Results().add(first.x).add(first.weight).add(first.scale).add(first.bias).add(second.y).add(second.sums);
      on_several_threads([&] { return fused(every, every); },
                         [&](const Results& found) {
                           for (size_t i = 0; i < apart.size(); ++i) {
                             expect(same_bits(found[i], apart[i]), "fused result " + std::to_string(i) + " differs");
                           }
                         });
      const Results fewest = fused(1, lagged ? 4 : 0);
      expect(same_bits(fewest[0], apart[0]), "dx differs when fused and alone");
      if (lagged) expect(same_bits(fewest[5], apart[5]), "dcoefficients differ when fused and alone");
    });
  }

  static constexpr double units = sizeof(T) == 2 ? 0.55 : 64, fine_units = 64;

  const StepCase c;
  const StepOperands<T> given;
  const StepOperands<double> exact;
  const StreamProjection<T> projection;
  std::vector<Sum> coefficients, statistics;
};

/// A gradient that is written past the caches, where it is aligned, has the bits of its halves, which are not.
template <class T>
void check_streaming() {
  const StepCase c = streaming_case<T>();
  const int64_t half = c.shape.tokens / 2;
  c.name_context<T>();
  const StepOperands<T> given(c);
  const std::vector<accumulate_t<T>> statistics(c.shape.tokens * c.kept(), 0.5f);
  const auto step = [&](int64_t first, int64_t tokens, int64_t shift) {
    Guarded<T> dx(tokens * c.shape.width(), shift);
    const T* const dnext = given.dnext.data() + first * c.shape.width();
    stream_pre_backward_cpu<T>({tokens, c.shape.streams, c.shape.channels}, given.projection(c),
                               {given.du.data() + first * c.shape.channels, nullptr, dnext, nullptr},
                               given.x.data() + first * c.shape.width(), nullptr,
                               given.before.data() + first * c.size(), statistics.data() + first * c.kept(),
                               {dx.data(), nullptr, nullptr, nullptr, nullptr});
    return dx.written();
  };
  on_every_cpu_isa([&] {
    std::vector<T> halves = step(0, half, 0);
    const std::vector<T> high = step(half, half, 0);
    halves.insert(halves.end(), high.begin(), high.end());
    for (const int64_t shift : {0, 1}) {
      expect(same_bits(step(0, c.shape.tokens, shift), halves), "dx has other bits past the caches");
    }
  });
}

template <class T>
void check_dtype() {
  for (const StepCase& c : every_mixer()) Backward<T>(c).run();
  for (const StepCase& c : large_and_empty()) Backward<T>(c).run();
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
  std::puts("streams_backward: ok");
}
