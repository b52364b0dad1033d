// Stream steps on the harness, forward and backward, against the definition in double.
#include "anabranch/mixers/stream_dweight_sm90.cuh"
#include "anabranch/mixers/stream_pre_backward.cuh"
#include "anabranch/mixers/stream_products_sm90.cuh"
#include "stream_case.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

/// Upstream gradients and results of one step; `wanted` leaves some out.
template <class T>
class StepCase {
  using Sum = accumulate_t<T>;

 public:
  StepCase(const StepShape& s_, std::mt19937& random_, unsigned wanted_, bool hopper_)
      : s(s_),
        wanted(wanted_),
        hopper(hopper_),
        random(random_),
        shape{s.tokens, s.streams, s.channels},
        permutations(some_permutations(s.streams)),
        logits(map().num_logits()),
        segments(s.split_norm ? s.streams : 1),
        size(s.streams * (s.streams + 2)),
        kept(s.weighted ? logits + 2 * segments : 0),
        weight(scaled_values<Sum>(logits / segments, shape.width() / segments, random)),
        scale(random_values<Sum>(logits, random)),
        bias(random_values<Sum>(logits, random)),
        x(streams(1)),
        y(streams(0)),
        before(random_values<Sum>(s.tokens * size, random)),
        du(streams(0)),
        dnext(streams(1)),
        dx(streams(1)),
        dcoefficients(random_values<Sum>(s.tokens * size, random)) {}

  void run() {
    pre(nullptr);
    pre(before.data());
    for (const bool lagged : {false, true}) post_pre(lagged);
    post_backward();
  }

 private:
  CoefficientMap map() {
    CoefficientMap out;
    out.gates.kind = s.gates;
    out.gates.pre_eps = 1e-3;
    out.mixer = mixer_of(s.mixer, s.streams, permutations.data());
    out.mixer.implicit_gradient = s.implicit_gradient;
    out.mixer.transposed_logits = out.mixer.transposed_matrix = s.transposed;
    out.per_stream = s.per_stream;
    return out;
  }
  template <class U>
  StreamProjection<U> projection(const accumulate_t<U>* w, const accumulate_t<U>* a, const accumulate_t<U>* b) {
    return {s.weighted ? w : nullptr, a, b, segments, 1e-5, s.centered, s.squash, map()};
  }
  std::vector<T> streams(int all) { return random_values<T>(s.tokens * s.channels * (all ? s.streams : 1), random); }
  auto typed() { return projection<T>(weight.data(), scale.data(), bias.data()); }
  auto exact() {
    weight64 = wide(weight.values()), scale64 = wide(scale.values()), bias64 = wide(bias.values());
    return projection<double>(weight64.data(), scale64.data(), bias64.data());
  }
  bool wants(int bit) const { return (wanted >> bit & 1) != 0; }
  static constexpr double rough = sizeof(T) == 2 ? 2e-2 : fine_tolerance<T>, fine = fine_tolerance<T>;

  void pre(const Sum* lag) {
    Guarded<T> u(s.tokens * s.channels);
    Guarded<Sum> coefficients(s.tokens * size), statistics(s.tokens * kept);
    Guarded<Sum> scratch(std::vector<Sum>(stream_pre_scratch(shape, typed(), hopper), Sum(NAN)));
    stream_pre_cuda<T>(shape, typed(), x.data(), lag, scratch.data(), hopper, u.data(), coefficients.data(),
                       statistics.data(), nullptr);
    std::vector<double> u64(u.size()), coefficients64(coefficients.size()), statistics64(statistics.size());
    const auto x64 = wide(x.values()), before64 = wide(before.values());
    const double* lag64 = lag ? before64.data() : nullptr;
    stream_pre_reference<double>(shape, exact(), x64.data(), lag64, u64.data(), coefficients64.data(),
                                 statistics64.data());
    expect_near(u.values(), u64, rough, "u");
    expect_near(coefficients.values(), coefficients64, fine, "coefficients");
    expect_near(statistics.values(), statistics64, fine, "statistics");
    pre_backward(lag, lag64, coefficients, statistics);
  }

  void pre_backward(const Sum* lag, const double* lag64, Guarded<Sum>& coefficients, Guarded<Sum>& statistics) {
    const auto du64 = wide(du.values()), dnext64 = wide(dnext.values()), dx64 = wide(dx.values());
    const auto given64 = wide(dcoefficients.values()), x64 = wide(x.values());
    const auto own64 = wide(coefficients.values()), kept64 = wide(statistics.values());
    Guarded<T> to_x(x.size());
    Guarded<Sum> to_weight(weight.size()), to_scale(logits), to_bias(logits), to_lag(s.tokens * size);
    Guarded<Sum> scratch(std::vector<Sum>(stream_backward_sizes(shape, typed(), hopper).sum(), Sum(NAN)));
    stream_pre_backward_cuda<T>(
        shape, typed(),
        {wants(0) ? du.data() : nullptr, wants(1) ? dcoefficients.data() : nullptr, wants(2) ? dnext.data() : nullptr,
         wants(3) ? dx.data() : nullptr},
        x.data(), lag, coefficients.data(), statistics.data(), scratch.data(), hopper,
        {to_x.data(), wants(4) ? to_weight.data() : nullptr, wants(5) ? to_scale.data() : nullptr,
         wants(6) ? to_bias.data() : nullptr, lag ? to_lag.data() : nullptr},
        nullptr);
    std::vector<double> x_64(x.size()), weight_64(weight.size()), scale_64(logits), bias_64(logits);
    std::vector<double> lag_64(s.tokens * size);
    stream_pre_backward_reference<double>(
        shape, exact(),
        {wants(0) ? du64.data() : nullptr, wants(1) ? given64.data() : nullptr, wants(2) ? dnext64.data() : nullptr,
         wants(3) ? dx64.data() : nullptr},
        x64.data(), lag64, own64.data(), kept64.data(),
        {x_64.data(), weight_64.data(), scale_64.data(), bias_64.data(), lag ? lag_64.data() : nullptr});
    expect_near(to_x.values(), x_64, rough, "dx");
    if (wants(4) && s.weighted) expect_near(to_weight.values(), weight_64, fine, "dweight");
    if (wants(5)) expect_near(to_scale.values(), scale_64, fine, "dscale");
    if (wants(6)) expect_near(to_bias.values(), bias_64, fine, "dbias");
    if (lag) expect_near(to_lag.values(), lag_64, fine, "dlag");
  }

  void post_pre(bool lagged) {
    Guarded<T> out(x.size()), u(y.size()), between(x.size()), to_x(x.size()), to_y(y.size());
    Guarded<Sum> next(s.tokens * size), statistics(s.tokens * kept);
    Guarded<Sum> parts(std::vector<Sum>(stream_pre_scratch(shape, typed(), hopper), Sum(NAN)));
    stream_post_pre_cuda<T>(shape, x.data(), y.data(), before.data(), typed(), lagged, parts.data(), hopper, out.data(),
                            u.data(), next.data(), statistics.data(), nullptr);
    const auto x64 = wide(x.values()), y64 = wide(y.values()), before64 = wide(before.values());
    std::vector<double> out64(out.size()), u64(u.size()), next64(next.size()), statistics64(statistics.size());
    stream_post_reference<double>(shape, x64.data(), y64.data(), before64.data(), out64.data());
    expect_near(out.values(), out64, rough, "out");
    const auto rounded = wide(out.values());
    stream_pre_reference<double>(shape, exact(), rounded.data(), lagged ? before64.data() : nullptr, u64.data(),
                                 next64.data(), statistics64.data());
    expect_near(u.values(), u64, rough, "u of post_pre");
    expect_near(next.values(), next64, fine, "next coefficients");
    expect_near(statistics.values(), statistics64, fine, "next statistics");

    Guarded<Sum> to_before(s.tokens * size), to_weight(weight.size()), to_scale(logits), to_bias(logits);
    Guarded<Sum> scratch(std::vector<Sum>(stream_backward_sizes(shape, typed(), hopper).sum(), Sum(NAN)));
    stream_post_pre_backward_cuda<T>(shape, x.data(), y.data(), before.data(), typed(), lagged,
                                     {wants(0) ? du.data() : nullptr, wants(1) ? dcoefficients.data() : nullptr,
                                      nullptr, wants(3) ? dx.data() : nullptr},
                                     next.data(), statistics.data(), between.data(), scratch.data(), hopper,
                                     {to_x.data(), to_weight.data(), to_scale.data(), to_bias.data(), nullptr},
                                     {nullptr, to_y.data(), to_before.data()}, nullptr);
    expect(same_bits(between.values(), out.values()), "the streams between are made as they were");
    const auto du64 = wide(du.values()), given64 = wide(dcoefficients.values()), dx64 = wide(dx.values());
    const auto own64 = wide(next.values()), kept64 = wide(statistics.values());
    std::vector<double> x_64(x.size()), weight_64(weight.size()), scale_64(logits), bias_64(logits), y_64(y.size());
    std::vector<double> lag_64(s.tokens * size), before_64(s.tokens * size);
    stream_pre_backward_reference<double>(
        shape, exact(),
        {wants(0) ? du64.data() : nullptr, wants(1) ? given64.data() : nullptr, nullptr,
         wants(3) ? dx64.data() : nullptr},
        rounded.data(), lagged ? before64.data() : nullptr, own64.data(), kept64.data(),
        {x_64.data(), weight_64.data(), scale_64.data(), bias_64.data(), lagged ? lag_64.data() : nullptr});
    expect_near(to_x.values(), x_64, rough, "dx of post_pre");
    if (s.weighted) expect_near(to_weight.values(), weight_64, fine, "dweight of post_pre");
    const auto passed = wide(to_x.values());
    stream_post_backward_reference<double>(shape, passed.data(), x64.data(), y64.data(), before64.data(),
                                           {nullptr, y_64.data(), before_64.data()});
    for (size_t i = 0; i < lag_64.size(); ++i) before_64[i] += lag_64[i];
    expect_near(to_y.values(), y_64, rough, "dy of post_pre");
    expect_near(to_before.values(), before_64, fine, "dcoefficients of post_pre");
  }

  void post_backward() {
    Guarded<T> to_x(x.size()), to_y(y.size());
    Guarded<Sum> to_before(s.tokens * size);
    stream_post_backward_cuda<T>(
        shape, dx.data(), x.data(), y.data(), before.data(), nullptr,
        {wants(0) ? to_x.data() : nullptr, wants(1) ? to_y.data() : nullptr, wants(2) ? to_before.data() : nullptr},
        nullptr);
    const auto x64 = wide(x.values()), y64 = wide(y.values()), before64 = wide(before.values());
    const auto dx64 = wide(dx.values());
    std::vector<double> x_64(x.size()), y_64(y.size()), before_64(s.tokens * size);
    stream_post_backward_reference<double>(shape, dx64.data(), x64.data(), y64.data(), before64.data(),
                                           {x_64.data(), y_64.data(), before_64.data()});
    if (wants(0)) expect_near(to_x.values(), x_64, rough, "dx of post");
    if (wants(1)) expect_near(to_y.values(), y_64, rough, "dy of post");
    if (wants(2)) expect_near(to_before.values(), before_64, fine, "dcoefficients of post");
  }

  const StepShape s;
  const unsigned wanted;
  const bool hopper;
  std::mt19937& random;
  const StreamShape shape;
  const std::vector<int32_t> permutations;
  const int64_t logits, segments, size, kept;
  Guarded<Sum> weight, scale, bias;
  Guarded<T> x, y;
  Guarded<Sum> before;
  Guarded<T> du, dnext, dx;
  Guarded<Sum> dcoefficients;
  std::vector<double> weight64, scale64, bias64;
};

template <class T>
void check_dtype(std::mt19937& random) {
  const auto check = [&](const StepShape& shape) {
    const unsigned wanted = random() % 2 ? 127 : random() % 128;
    for (const bool hopper : {false, true}) {
      if (!hopper || (std::is_same_v<T, bfloat16> && (shape.channels % 8 == 0 || shape.channels == 7)))
        StepCase<T>(shape, random, wanted, hopper).run();
    }
  };
  check({.tokens = 5, .streams = 4, .channels = 72});
  check({.tokens = 33, .streams = 2, .channels = 7, .transposed = true});
  check({.tokens = 1,
         .streams = 8,
         .channels = 40,
         .mixer = MixerKind::cayley,
         .gates = GateKind::softmax,
         .split_norm = true,
         .centered = true});
  check({.tokens = 3,
         .streams = 3,
         .channels = 9,
         .mixer = MixerKind::unconstrained,
         .gates = GateKind::linear,
         .per_stream = true,
         .split_norm = true,
         .squash = true});
  check({.tokens = 2, .streams = 4, .channels = 300, .mixer = MixerKind::permutation_mixture, .centered = true});
  check({.tokens = 2, .streams = 8, .channels = 11, .mixer = MixerKind::sinkhorn, .squash = true});
  check({.tokens = 70, .streams = 2, .channels = 3, .mixer = MixerKind::identity, .weighted = false});
  check({.tokens = 40, .streams = 8, .channels = 16});
  check({.tokens = 300, .streams = 2, .channels = 8, .mixer = MixerKind::cayley});
  check({.tokens = 0, .streams = 4, .channels = 8});
}

}  // namespace

int main() {
  unsigned round = 0;
  for_each_schedule([&] {
    std::mt19937 random(++round);
    switch (round % 4) {            // a dtype in every thread order
#if !defined(__SANITIZE_ADDRESS__)  // three orders: half would only be compiled
      case 0:
        return check_dtype<half>(random);
#endif
      case 1:
        return check_dtype<bfloat16>(random);
      case 2:
        return check_dtype<float>(random);
      default:
        return check_dtype<double>(random);
    }
  });
  std::puts("streams: ok");
}
