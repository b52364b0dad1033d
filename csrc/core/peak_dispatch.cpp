// peak_flops(), read_bandwidth() and random_line_rate(): runs the loops of the detected instruction set on several
// threads at once.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <numeric>
#include <vector>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/core/memory.hpp"
#include "anabranch/core/parallel.hpp"
#include "anabranch/core/peak.hpp"

namespace anabranch {
namespace {

using Clock = std::chrono::steady_clock;
using Loop = double (*)(int64_t rounds);

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

/// Seconds that this thread has run: without those in which something else had its core.
double thread_seconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

Loop multiply_adds([[maybe_unused]] bool bf16) {
#if defined(__x86_64__)
  const CpuIsa isa = detected_cpu_isa();
  if (bf16 && isa == CpuIsa::avx512_bf16) return multiply_adds_avx512_bf16;
  if (isa >= CpuIsa::avx512) return multiply_adds_avx512;
  if (isa == CpuIsa::avx2) return multiply_adds_avx2;
#endif
  return multiply_adds_portable;
}

/// FLOP/s of one stretch, all workers at work: the sum of each one's FLOPs over its own running time. Over wall time it
/// would count who came late because another program had the core, which on a busy machine is every stretch.
double flops_of_stretch(Loop loop, int num_workers, double seconds) {
  constexpr int64_t rounds = 10000;  // some 30 microseconds between looks at the clock
  std::vector<double> rates(num_workers);
  parallel_workers(num_workers, [&](int worker) {
    const auto start = Clock::now();
    const double before = thread_seconds();
    double done = 0;
    do done += loop(rounds);
    while (seconds_since(start) < seconds);
    rates[worker] = done / (thread_seconds() - before);
  });
  return std::accumulate(rates.begin(), rates.end(), 0.0);
}

/// Seconds from the first worker's begin to the last one's end of work(worker), without the time to wake them.
template <class Work>
double busy_seconds(int num_workers, Work&& work) {
  std::vector<Clock::time_point> begin(num_workers), end(num_workers);
  parallel_workers(num_workers, [&](int worker) {
    begin[worker] = Clock::now();
    work(worker);
    end[worker] = Clock::now();
  });
  return std::chrono::duration<double>(*std::max_element(end.begin(), end.end()) -
                                       *std::min_element(begin.begin(), begin.end()))
      .count();
}

constexpr int64_t words_per_line = 8, line_bytes = words_per_line * sizeof(uint64_t);

/// Memory of which each worker has written its share of lines: pages then lie on its own node, and none is the shared
/// page of zeros.
AlignedBytes written_bytes(std::size_t bytes, int num_workers) {
  AlignedBytes memory = aligned_bytes(bytes);
  const auto lines = static_cast<int64_t>(bytes / line_bytes);
  const auto share = [&](int worker) { return lines * worker / num_workers; };
  parallel_workers(num_workers, [&](int worker) {
    std::memset(memory.get() + share(worker) * line_bytes, 1, (share(worker + 1) - share(worker)) * line_bytes);
  });
  return memory;
}

}  // namespace

double peak_flops(bool bf16, int num_workers, double seconds) {
  constexpr int stretches = 50;
  const Loop loops[] = {multiply_adds(false), multiply_adds(bf16)};
  const int num_loops = loops[0] == loops[1] ? 1 : 2;
  double best = 0;
  for (int stretch = 0; stretch < stretches; ++stretch)
    for (int i = 0; i < num_loops; ++i)
      best = std::max(best, flops_of_stretch(loops[i], num_workers, seconds / (stretches * num_loops)));
  return best;
}

double read_bandwidth(std::size_t bytes, int num_workers, int repeats) {
  const auto lines = static_cast<int64_t>(bytes / line_bytes);
  const AlignedBytes memory = written_bytes(bytes, num_workers);
  const auto* words = reinterpret_cast<const uint64_t*>(memory.get());
  const auto share = [&](int worker) { return lines * worker / num_workers; };
  double best = 0;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const double seconds = busy_seconds(num_workers, [&](int worker) {
      uint64_t sum[4] = {};  // of each of four lines a round, so that no addition waits for another
      const int64_t end = share(worker + 1);
      int64_t line = share(worker);
      for (; line + 4 <= end; line += 4)
        for (int i = 0; i < 4; ++i) sum[i] += words[(line + i) * words_per_line];
      volatile uint64_t used = sum[0] + sum[1] + sum[2] + sum[3];  // or nothing would be read
      (void)used;
    });
    best = std::max(best, static_cast<double>(bytes) / seconds);
  }
  return best;
}

double random_line_rate(std::size_t bytes, int64_t lines, int num_workers, int repeats) {
  const auto places = static_cast<uint64_t>(bytes / line_bytes);
  const AlignedBytes memory = written_bytes(bytes, num_workers);
  const auto* words = reinterpret_cast<const uint64_t*>(memory.get());
  double best = 0;
  for (int repeat = 0; repeat < repeats; ++repeat) {
    const double seconds = busy_seconds(num_workers, [&](int worker) {
      uint64_t sum = 0, random = 977 * static_cast<uint64_t>(repeat * num_workers + worker) + 1;
      for (int64_t line = 0; line < lines; ++line) {
        random = random * 6364136223846793005 + 1442695040888963407;  // Knuth's MMIX
        sum += words[((random >> 32) * places >> 32) * words_per_line];
      }
      volatile uint64_t used = sum;  // or nothing would be read
      (void)used;
    });
    best = std::max(best, static_cast<double>(lines) * num_workers / seconds);
  }
  return best;
}

}  // namespace anabranch
