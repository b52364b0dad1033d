// The gated mean on the harness, forward and backward, against the definition in double: every dtype, aligned and
// unaligned rows, any number of streams, each gradient alone.
#include "anabranch/mixers/gated_mean.cuh"
#include "guarded.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

template <class T>
std::vector<T> converted(const std::vector<double>& values) {
  std::vector<T> out;
  for (const double value : values) out.push_back(T(static_cast<accumulate_t<T>>(value)));
  return out;
}

template <class T>
std::vector<double> wide(const Guarded<T>& values) {
  std::vector<double> out;
  for (const T value : values.values()) out.push_back(static_cast<accumulate_t<T>>(value));
  return out;
}

template <class T>
void check_shape(int64_t tokens, int64_t streams, int64_t channels, int shift) {
  std::mt19937 random(static_cast<unsigned>(channels));
  const int64_t numbers = tokens * streams * channels;
  std::vector<T> logit_values = random_values<T>(numbers, random);
  for (size_t i = 0; i < logit_values.size(); i += 3) {
    logit_values[i] = T(30 * static_cast<accumulate_t<T>>(logit_values[i]));
  }
  Guarded<T> x(random_values<T>(numbers, random), shift), logits(logit_values, shift);
  Guarded<T> du(random_values<T>(tokens * channels, random), shift), u(tokens * channels, shift);
  const auto x64 = wide(x), logits64 = wide(logits), du64 = wide(du);
  const GatedMean<double> exact{x64.data(), logits64.data(), tokens, streams, channels};
  std::vector<double> u64(du64.size()), dx64(x64.size()), dlogits64(x64.size());
  gated_mean_reference(exact, u64.data());
  gated_mean_backward_reference(exact, du64.data(), dx64.data(), dlogits64.data());

  const GatedMean<T> problem{x.data(), logits.data(), tokens, streams, channels};
  const double units = sizeof(T) == 2 ? 1 : 8;
  gated_mean_cuda<T>(problem, u.data(), nullptr);
  expect(spacing_error(u.values(), converted<T>(u64)) <= units, "u");
  for (const int wanted : {1, 2, 3}) {
    Guarded<T> dx(wanted & 1 ? numbers : 0, shift), dlogits(wanted & 2 ? numbers : 0, shift);
    gated_mean_backward_cuda<T>(problem, du.data(), wanted & 1 ? dx.data() : nullptr,
                                wanted & 2 ? dlogits.data() : nullptr, nullptr);
    if (wanted & 1) expect(spacing_error(dx.values(), converted<T>(dx64)) <= units, "dx");
    if (wanted & 2) expect(spacing_error(dlogits.values(), converted<T>(dlogits64)) <= units, "dlogits");
  }
}

template <class T>
void check_dtype() {
  for (const int shift : {0, 1}) {
    check_shape<T>(3, 4, 40, shift);
    check_shape<T>(5, 3, 7, shift);
    check_shape<T>(2, 1, 1, shift);
    check_shape<T>(1, 9, 16, shift);
    check_shape<T>(3, 2, 520, shift);  // more pieces than a block has threads
    check_shape<T>(0, 4, 8, shift);
    check_shape<T>(3, 4, 0, shift);
  }
}

}  // namespace

int main() {
  for_each_schedule([] {
    check_dtype<float>();
    check_dtype<double>();
    check_dtype<bfloat16>();
    check_dtype<half>();
  });
  std::puts("gated_mean: ok");
}
