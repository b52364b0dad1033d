// The stream step of mHC on one thread: 4096 tokens of n streams of 2048 channels, mixed by 20
// Sinkhorn iterations; and the mixing matrices alone. Bytes and FLOPs are those of streams.hpp.
#include "../core/limits.hpp"
#include "anabranch/mixers/streams_cpu.hpp"

namespace {

using namespace anabranch;
using bench::numbers, bench::report;

constexpr int64_t tokens = 4096, channels = 2048;

template <class T>
struct Step {
  using Sum = accumulate_t<T>;
  explicit Step(int64_t n)
      : shape{tokens, n, channels},
        x(numbers<T>(tokens * n * channels)),
        y(numbers<T>(tokens * channels)),
        out(x.size()),
        u(y.size()) {
    bench::machine();
    map.mixer.kind = MixerKind::sinkhorn;
    map.mixer.num_streams = static_cast<int>(n);
    map.mixer.iterations = 20;
    weight = numbers<Sum>(map.num_logits() * shape.width(), 0.01);
    scale = bias = numbers<Sum>(map.num_logits());
    coefficients = next_coefficients = numbers<Sum>(tokens * map.num_coefficients());
    statistics = std::vector<Sum>(tokens * projection().num_statistics());
  }
  StreamProjection<T> projection() const {
    return {weight.data(), scale.data(), bias.data(), 1, 1e-6, false, false, map};
  }
  double stream_bytes(int64_t streams) const { return static_cast<double>(tokens * streams * channels * sizeof(T)); }
  double product_flops() const { return 2.0 * static_cast<double>(map.num_logits() * tokens * shape.width()); }

  StreamShape shape;
  CoefficientMap map;
  std::vector<T> x, y, out, u;
  std::vector<Sum> weight, scale, bias, coefficients, next_coefficients, statistics;
};

template <class T>
void stream_pre(benchmark::State& state) {
  Step<T> s(state.range(0));
  for (auto _ : state) {
    stream_pre_cpu<T>(s.shape, s.projection(), s.x.data(), nullptr, s.u.data(), s.coefficients.data(),
                      s.statistics.data());
  }
  report<T>(state, s.product_flops(), s.stream_bytes(s.shape.streams + 1));
}
BENCHMARK(stream_pre<bfloat16>)->ArgNames({"streams"})->Args({4})->UseRealTime();
BENCHMARK(stream_pre<float>)->ArgNames({"streams"})->Args({4})->UseRealTime();

template <class T>
void stream_post(benchmark::State& state) {
  Step<T> s(state.range(0));
  for (auto _ : state) stream_post_cpu<T>(s.shape, s.x.data(), s.y.data(), s.coefficients.data(), s.out.data());
  report<T>(state, 0, s.stream_bytes(2 * s.shape.streams + 1));
}
BENCHMARK(stream_post<bfloat16>)->ArgNames({"streams"})->Args({2})->Args({4})->Args({8})->UseRealTime();
BENCHMARK(stream_post<float>)->ArgNames({"streams"})->Args({4})->UseRealTime();

template <class T>
void stream_post_pre(benchmark::State& state) {
  Step<T> s(state.range(0));
  for (auto _ : state) {
    stream_post_pre_cpu<T>(s.shape, s.x.data(), s.y.data(), s.coefficients.data(), s.projection(), false, s.out.data(),
                           s.u.data(), s.next_coefficients.data(), s.statistics.data());
  }
  report<T>(state, s.product_flops(), s.stream_bytes(2 * s.shape.streams + 2));
}
BENCHMARK(stream_post_pre<bfloat16>)->ArgNames({"streams"})->Args({4})->UseRealTime();
BENCHMARK(stream_post_pre<float>)->ArgNames({"streams"})->Args({4})->UseRealTime();

/// One matrix for each of 65536 tokens: divisions bound it, of which no limit is measured. `matrices/s` is its number.
void sinkhorn(benchmark::State& state) {
  constexpr int64_t count = 65536;
  bench::machine();
  Mixer mixer;
  mixer.kind = MixerKind::sinkhorn;
  mixer.num_streams = static_cast<int>(state.range(0));
  mixer.iterations = 20;
  const auto logits = numbers<float>(count * mixer.num_logits());
  std::vector<float> matrices(count * mixer.num_streams * mixer.num_streams);
  for (auto _ : state) mix_matrix_cpu<float>(mixer, count, logits.data(), matrices.data());
  state.counters["matrices/s"] = benchmark::Counter(count, benchmark::Counter::kIsIterationInvariantRate);
}
BENCHMARK(sinkhorn)->ArgNames({"streams"})->Args({2})->Args({4})->Args({8})->UseRealTime();

}  // namespace

BENCHMARK_MAIN();
