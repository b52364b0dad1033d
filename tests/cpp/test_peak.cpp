// The loops behind peak_flops() run on every instruction set of this machine and count what they do; peaks and
// bandwidth are positive numbers for any number of workers. How large they are is no test.
#include <cmath>
#include <cstdio>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/peak.hpp"

namespace {

using namespace anabranch;

int failures = 0;

void expect(bool condition, const char* what, double value) {
  if (condition) return;
  ++failures;
  std::printf("peak: %s is %g\n", what, value);
}

}  // namespace

int main() {
  struct {
    CpuIsa isa;
    double (*loop)(int64_t);
    double flops_per_round;  // 2 * lanes * products per lane * sums
  } loops[] = {
      {CpuIsa::portable, multiply_adds_portable, 2 * 4 * 1 * 12},
#if defined(__x86_64__)
      {CpuIsa::avx2, multiply_adds_avx2, 2 * 8 * 1 * 12},
      {CpuIsa::avx512, multiply_adds_avx512, 2 * 16 * 1 * 24},
      {CpuIsa::avx512_bf16, multiply_adds_avx512_bf16, 2 * 16 * 2 * 24},
#endif
  };
  for (const auto& [isa, loop, flops_per_round] : loops) {
    if (isa > detected_cpu_isa()) continue;
    for (const int64_t rounds : {0, 1, 1000})
      expect(loop(rounds) == flops_per_round * static_cast<double>(rounds), cpu_isa_name(isa).data(), loop(rounds));
  }
  for (const int workers : {1, 3}) {
    for (const bool bf16 : {false, true}) {
      const double peak = peak_flops(bf16, workers, 0.01);
      expect(std::isfinite(peak) && peak > 0, "peak_flops", peak);
    }
    // No multiple of the lines that a share or a round of it has.
    const double bandwidth = read_bandwidth((std::size_t{1} << 20) + 64 * 7 + 5, workers, 2);
    expect(std::isfinite(bandwidth) && bandwidth > 0, "read_bandwidth", bandwidth);
    const double lines = random_line_rate((std::size_t{1} << 20) + 64 * 7 + 5, 1000, workers, 2);
    expect(std::isfinite(lines) && lines > 0, "random_line_rate", lines);
  }
  std::printf(failures ? "peak: %d failures\n" : "peak: ok\n", failures);
  return failures != 0;
}
