// gemm() on one thread at the tile shapes of a mixture-of-experts FFN, beside the machine's own limits measured in the
// same run: multiply-adds per second from registers, and bytes per second read front to back from memory.
//
// The weights rotate through a pool larger than the caches, so every product streams its B from memory as a model does.
// limit = the larger of FLOPs / peak and bytes of B / bandwidth; the table's last column is limit / time.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <type_traits>
#include <vector>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/gemm_cpu.hpp"
#include "anabranch/core/peak.hpp"

namespace {

using namespace anabranch;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Smallest time of one f() over `repeats` calls, in seconds.
template <class F>
double fastest(int repeats, F&& f) {
  double best = 1e30;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const double start = seconds();
    f();
    best = std::min(best, seconds() - start);
  }
  return best;
}

struct Machine {
  double peak, bandwidth;
  std::vector<uint64_t> pool;
  void* workspace;
};

void report(const Machine& machine, const char* form, const char* type, int64_t m, int64_t n, int64_t k, double bytes,
            double time) {
  const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
  const double limit = std::max(flops / machine.peak, bytes / machine.bandwidth);
  std::printf("%-7s %-5s %5ld %5ld %5ld %9.1f %8.1f %7.1f %7.1f %7.1f\n", form, type, m, n, k, time * 1e6,
              flops / time / 1e9, 100 * flops / machine.peak / time, 100 * bytes / machine.bandwidth / time,
              100 * limit / time);
}

/// Time of one product, averaged over `count` products that f(index) makes; the fastest of some rounds.
template <class F>
double time_of_one(int64_t pool_matrices, double flops, F&& f) {
  const int64_t count = std::clamp<int64_t>(static_cast<int64_t>(1e9 / flops), 1, pool_matrices / 8);
  int64_t next = 0;
  return fastest(5,
                 [&] {
                   for (int64_t i = 0; i < count; ++i) f(next++ % pool_matrices);
                 }) /
         static_cast<double>(count);
}

template <class T>
void run(Machine& machine, const char* type, int64_t tile) {
  machine.peak = peak_flops(std::is_same_v<T, bfloat16>, 1, 0.2);
  std::mt19937 generator(1);
  const T* pool = reinterpret_cast<const T*>(machine.pool.data());
  const int64_t pool_size = static_cast<int64_t>(machine.pool.size() * sizeof(uint64_t) / sizeof(T));
  std::vector<T> tokens(4096 * 2048, T(0.5f));
  std::vector<accumulate_t<T>> c(2048 * 2048);
  std::vector<int32_t> ids(512);
  for (int32_t& id : ids) id = static_cast<int32_t>(generator() % 4096);

  const int64_t shapes[][2] = {{1536, 2048}, {2048, 768}};
  for (const auto& [n, k] : shapes) {
    const int64_t matrices = pool_size / (n * k);
    const double bytes = static_cast<double>(n * k) * sizeof(T);
    for (int64_t m : {1, 2, 4, 8, 16, 32, 64, 128, 512}) {
      const auto forward = [&](int64_t index) {
        for (int64_t j = 0; j < n; j += tile)
          gemm<T>(m, std::min(tile, n - j), k, {tokens.data(), k, 1, ids.data()}, {pool + index * n * k + j * k, k, 1},
                  c.data() + j, n, false, machine.workspace);
      };
      report(machine, "forward", type, m, n, k, bytes, time_of_one(matrices, 2.0 * m * n * k, forward));
    }
    for (int64_t m : {1, 2, 4, 8, 16, 32, 64, 128, 512}) {
      const auto dgrad = [&](int64_t index) {
        for (int64_t j = 0; j < n; j += tile)
          gemm<T>(m, std::min(tile, n - j), k, {tokens.data(), k, 1}, {pool + index * n * k + j, 1, n}, c.data() + j, n,
                  false, machine.workspace);
      };
      report(machine, "dgrad", type, m, n, k, bytes, time_of_one(matrices, 2.0 * m * n * k, dgrad));
    }
    for (int64_t routed : {1, 8, 32, 128, 512}) {
      const auto wgrad = [&](int64_t) {
        for (int64_t j = 0; j < n; j += tile)
          gemm<T>(k, std::min(tile, n - j), routed, {tokens.data(), 1, k, nullptr, ids.data()},
                  {tokens.data() + j, 1, n, nullptr, ids.data()}, c.data(), tile, false, machine.workspace);
      };
      report(machine, "wgrad", type, k, n, routed, 0, time_of_one(matrices, 2.0 * k * n * routed, wgrad));
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t tile = argc > 1 ? std::atoll(argv[1]) : 256;
  const char* only = argc > 2 ? argv[2] : "";
  Machine machine{};
  machine.pool.assign((std::size_t{512} << 20) / sizeof(uint64_t), 0x3f003f003f003f00);  // 0.5 in every type, nearly
  machine.workspace = std::aligned_alloc(64, gemm_workspace_bytes);
  machine.bandwidth = read_bandwidth(machine.pool.size() * sizeof(uint64_t), 1, 5);
  std::printf("%s, one thread: %.1f GFLOP/s float32, %.1f bfloat16, %.1f GB/s read; n tile %ld\n",
              cpu_isa_name(cpu_isa()).data(), peak_flops(false, 1, 0.2) / 1e9, peak_flops(true, 1, 0.2) / 1e9,
              machine.bandwidth / 1e9, tile);
  std::printf("%-7s %-5s %5s %5s %5s %9s %8s %7s %7s %7s\n", "form", "type", "m", "n", "k", "us", "GFLOP/s", "% peak",
              "% bw", "% limit");
  if (!*only || !std::strcmp(only, "bf16")) run<bfloat16>(machine, "bf16", tile);
  if (!*only || !std::strcmp(only, "f32")) run<float>(machine, "f32", tile);
  if (!*only || !std::strcmp(only, "f16")) run<half>(machine, "f16", tile);
  std::free(machine.workspace);
}
