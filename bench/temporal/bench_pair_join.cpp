// pair_join and pair_encode at NAT's sizes on one thread, beside the machine's limit measured in the same run: the
// bytes that a join reads and writes once, over the bandwidth of a copy within as large a working set.
//
// 49 slots (1 + 32 + 16), 4 features of float, nine slots of ten full, 1000 nodes. P = 200 pairs of 300 rows is NAT's
// batch of 100 and lies in the second cache; 4000 pairs lie in the third.
#include <chrono>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "anabranch/core/peak.hpp"
#include "anabranch/temporal/pair_encode_cpu.hpp"

namespace {

using namespace anabranch;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

/// Smallest time of one f(), in seconds.
template <class F>
double fastest(F&& f) {
  double best = 1e30;
  for (const double until = seconds() + 0.5; seconds() < until;) {
    const double start = seconds();
    f();
    best = std::min(best, seconds() - start);
  }
  return best;
}

/// Bytes per second of a sum over 512 MB.
double read_bandwidth() {
  const std::vector<uint64_t> memory(64 << 20, 1);
  uint64_t sum = 0;
  const double time = fastest([&] {
    for (const uint64_t word : memory) sum += word;
  });
  return sum ? static_cast<double>(memory.size() * sizeof(uint64_t)) / time : 0;
}

void run(int64_t pairs, int64_t channels, double bandwidth) {
  constexpr int64_t slots = 49, features = 4, width = 2 * slots;
  const int64_t rows = pairs * 3 / 2;
  std::mt19937_64 random(1);
  std::vector<int64_t> keys(rows * slots), left(pairs), right(pairs), joined_keys(pairs * width);
  std::vector<int32_t> slot_codes(slots, 2), codes(pairs * width), counts(pairs);
  slot_codes[0] = 1;
  std::fill(slot_codes.begin() + 33, slot_codes.end(), 4);
  for (int64_t& key : keys) key = random() % 10 ? static_cast<int64_t>(random() % 1000) : -1;
  for (int64_t& row : left) row = static_cast<int64_t>(random() % rows);
  for (int64_t& row : right) row = static_cast<int64_t>(random() % rows);
  std::normal_distribution<float> normal;
  const auto numbers = [&](int64_t n) {
    std::vector<float> out(n);
    for (float& number : out) number = normal(random);
    return out;
  };
  const auto z = numbers(rows * slots * features), weight = numbers(channels * features);
  const auto table = numbers(num_pair_codes * channels), dout = numbers(pairs * channels);
  std::vector<float> joined_z(pairs * width * features), out(pairs * channels), dz(z.size());
  std::vector<float> dweight(weight.size()), dtable(table.size());
  const SlotPairs<float> sets{keys.data(), z.data(), slot_codes.data(), left.data(), right.data(),
                              rows,        slots,    features,          pairs};

  const double read = static_cast<double>(pairs * width * (8 + 4 * features));
  const double written = read + static_cast<double>(pairs * (4 * width + 4));
  // The limit: rows of the same length, gathered by the same numbers and written front to back.
  std::vector<char> to(static_cast<size_t>(written) + 64);
  const double copy = fastest([&] {
    char* at = to.data();
    for (int64_t p = 0; p < pairs; ++p) {
      for (const int64_t row : {left[p], right[p]}) {
        std::memcpy(at, keys.data() + row * slots, slots * 8), at += slots * 8;
        std::memcpy(at, z.data() + row * slots * features, slots * features * 4), at += slots * features * 4;
      }
      std::memset(at, 0, 4 * width + 4), at += 4 * width + 4;
    }
  });
  const double join =
      fastest([&] { pair_join_cpu(sets, joined_keys.data(), codes.data(), joined_z.data(), counts.data()); });
  const double join_back = fastest([&] { pair_join_backward_cpu(sets, joined_z.data(), dz.data()); });
  const double scale = 1e9 / static_cast<double>(pairs);
  const double limit = (read + written) / bandwidth;
  std::printf(
      "P %6ld: %.0f bytes a pair, at the bandwidth %.0f ns, copied %.0f; pair_join %.0f (%.1fx, %.1fx), backward "
      "%.0f\n",
      pairs, (read + written) / static_cast<double>(pairs), limit * scale, copy * scale, join * scale, join / limit,
      join / copy, join_back * scale);
  for (const PairActivation activation : {PairActivation::none, PairActivation::relu}) {
    const PairEncode<float> problem{sets, weight.data(), table.data(), channels, activation};
    int64_t joined = 0;
    for (const int32_t count : counts) joined += count;
    const bool relu = activation == PairActivation::relu;
    const double flops = relu ? 2.0 * static_cast<double>(joined * channels * (features + 1)) : 0;
    const double forward = fastest([&] { pair_encode_cpu(problem, out.data()); });
    const double backward =
        fastest([&] { pair_encode_backward_cpu(problem, dout.data(), dz.data(), dweight.data(), dtable.data()); });
    std::printf("P %6ld: pair_encode %s, H %ld: forward %7.0f ns a pair, backward %7.0f", pairs, relu ? "relu" : "none",
                channels, forward * scale, backward * scale);
    if (relu) std::printf("; %.1f and %.1f GFLOP/s", flops / forward / 1e9, 3 * flops / backward / 1e9);
    std::printf("\n");
  }
}

}  // namespace

int main() {
  parallel_backend().num_threads = [] { return 1; };
  const double bandwidth = read_bandwidth();
  std::printf("%s, one thread, multiply-adds from registers %.1f GFLOP/s, memory read at %.1f GB/s\n",
              cpu_isa_name(cpu_isa()).data(), peak_flops(false, 1, 0.2) / 1e9, bandwidth / 1e9);
  for (const int64_t pairs : {200, 4000, 100000}) run(pairs, 200, bandwidth);
}
