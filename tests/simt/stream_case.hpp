// A random stream step in buffers that notice what is written beside them, and the same in double.
#pragma once

#include "anabranch/mixers/streams.hpp"
#include "guarded.hpp"

struct StepShape {
  int64_t tokens, streams, channels;
  anabranch::MixerKind mixer = anabranch::MixerKind::sinkhorn;
  anabranch::GateKind gates = anabranch::GateKind::sigmoid;
  bool weighted = true, per_stream = false, split_norm = false, centered = false, squash = false;
  bool implicit_gradient = false, transposed = false;
};

template <class T>
std::vector<double> wide(const std::vector<T>& values) {
  std::vector<double> out;
  for (const T value : values) out.push_back(static_cast<double>(static_cast<anabranch::accumulate_t<T>>(value)));
  return out;
}

template <class T>
void expect_near(const std::vector<T>& values, const std::vector<double>& expected, double tolerance,
                 const char* what) {
  expect(values.size() == expected.size(), what);
  double scale = 1;
  for (const double value : expected) scale = std::max(scale, std::abs(value));
  for (size_t i = 0; i < values.size(); ++i) {
    const double value = static_cast<double>(static_cast<anabranch::accumulate_t<T>>(values[i]));
    if (std::abs(value - expected[i]) <= tolerance * scale || (value != value && expected[i] != expected[i])) continue;
    std::fprintf(stderr, "%s[%zu] is %.9g, expected %.9g\n", what, i, value, expected[i]);
    expect(false, what);
  }
}

/// Largest error of sums, relative to the larger of 1 and the largest.
template <class T>
inline constexpr double fine_tolerance = std::is_same_v<T, double> ? 1e-9 : 1e-4;

/// [rows, width], each row of length about 1.
template <class T>
std::vector<T> scaled_values(int64_t rows, int64_t width, std::mt19937& random) {
  auto out = random_values<T>(rows * width, random);
  for (T& value : out) value /= static_cast<T>(std::sqrt(width));
  return out;
}

/// Rows of permutations, every second one rolled, with an entry that names no column.
inline std::vector<int32_t> some_permutations(int64_t streams) {
  std::vector<int32_t> out;
  for (int64_t k = 0; k < 5; ++k) {
    for (int64_t i = 0; i < streams; ++i)
      out.push_back(static_cast<int32_t>((i * (k % 2 ? 1 : streams - 1) + k) % streams));
  }
  out.back() = 77;
  return out;
}

inline anabranch::Mixer mixer_of(anabranch::MixerKind kind, int64_t streams, const int32_t* permutations) {
  anabranch::Mixer out;
  out.kind = kind;
  out.num_streams = static_cast<int>(streams);
  out.iterations = kind == anabranch::MixerKind::truncated_cayley ? 2 : 6;
  out.rank = static_cast<int>(streams / 2);
  out.tolerance = 1e-9;
  out.scale = kind == anabranch::MixerKind::truncated_cayley ? 0.2 : 1;
  if (kind == anabranch::MixerKind::permutation_mixture) out.permutations = permutations, out.num_permutations = 5;
  return out;
}
