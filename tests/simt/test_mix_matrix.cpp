// Matrices of every mixer and their gradients on the harness, against the definition in double.
#include "anabranch/mixers/coefficients_backward.cuh"
#include "stream_case.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

template <class V>
void check(const Mixer& mixer, int64_t count, double spread, std::mt19937& random) {
  const int64_t n = mixer.num_streams, size = mixer.num_logits();
  std::vector<V> values = random_values<V>(count * size, random);
  for (V& value : values) value *= static_cast<V>(spread);
  if (size > 0 && count > 2) values[size] = V(NAN);  // all of the second matrix
  Guarded<V> logits(values), dmatrices(random_values<V>(count * n * n, random));
  Guarded<V> matrices(count * n * n), dlogits(count * size);
  Guarded<V> history(coefficient_history(mixer, count));
  const auto logits64 = wide(values), dmatrices64 = wide(dmatrices.values());
  std::vector<double> matrices64(count * n * n), dlogits64(count * size), history64(mixer.history_size());
  detail::dispatch_streams(n, [&]<int streams>() {
    for (int64_t b = 0; b < count; ++b) {
      double h[streams][streams], dh[streams][streams];
      detail::project<double, streams>(mixer, logits64.data() + b * size, h);
      for (int64_t k = 0; k < n * n; ++k) {
        matrices64[b * n * n + k] = h[k / n][k % n];
        dh[k / n][k % n] = dmatrices64[b * n * n + k];
      }
      detail::project_backward<double, streams>(mixer, logits64.data() + b * size, h, dh,
                                                detail::History<double>{history64.data(), 1},
                                                dlogits64.data() + b * size);
    }
  });
  const double tolerance = std::is_same_v<V, double> ? 1e-9 : 2e-4;
  mix_matrix_cuda<V>(mixer, count, logits.data(), matrices.data(), nullptr);
  expect_near(matrices.values(), matrices64, tolerance, "matrices");
  mix_matrix_backward_cuda<V>(mixer, count, dmatrices.data(), logits.data(), matrices.data(), history.data(),
                              dlogits.data(), nullptr);
  for (int64_t k = 0; k < size && count > 2; ++k) dlogits64[size + k] = static_cast<double>(dlogits.data()[size + k]);
  expect_near(dlogits.values(), dlogits64, tolerance, "dlogits");
}

template <class V>
void check_mixer(MixerKind kind, int64_t streams, std::mt19937& random) {
  const auto permutations = some_permutations(streams);
  Mixer mixer = mixer_of(kind, streams, permutations.data());
  for (const int64_t count : {int64_t{0}, int64_t{1}, int64_t{70}}) check<V>(mixer, count, 1, random);
  if (kind != MixerKind::sinkhorn) return;
  check<V>(mixer, 3, 30, random);  // logarithms
  mixer.eps = 1e-6;
  mixer.transposed_logits = mixer.transposed_matrix = true;
  check<V>(mixer, 3, 1, random);
  mixer.implicit_gradient = true;
  mixer.eps = 0;
  mixer.iterations = 200;
  check<V>(mixer, 3, 0.5, random);
}

/// More matrices than there is room for at a time: slots are used again.
void check_history_slots() {
  Mixer mixer = mixer_of(MixerKind::sinkhorn, 2, nullptr);
  mixer.iterations = 1000;
  expect(detail::history_slots(mixer, 0) == 0 && detail::history_slots(mixer, 65) == 128, "slots of few");
  expect(detail::history_slots(mixer, 100000) == 4160, "slots of many");
  std::mt19937 random(1);
  check<float>(mixer, 4200, 1, random);
}

}  // namespace

int main() {
  unsigned round = 0;
  check_history_slots();
  for_each_schedule([&] {
    std::mt19937 random(++round);
    for (int kind = 0; kind <= static_cast<int>(MixerKind::grassmann); ++kind) {
      for (const int64_t streams : {2, 3, 4, 8}) {
        if ((streams + kind + round) % 2) {
          check_mixer<float>(static_cast<MixerKind>(kind), streams, random);
        } else {
          check_mixer<double>(static_cast<MixerKind>(kind), streams, random);
        }
      }
    }
  });
  std::puts("mix_matrix: ok");
}
