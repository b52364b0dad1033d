// An ordered map that threads share: every thread books trades under their time while another sums up a window.
#include <anabranch/index/bskiplist.hpp>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

int main() {
  constexpr int64_t threads = 4, trades = 100'000;  // of each thread
  anabranch::BSkipList<int64_t> amount_at;          // time -> amount, 64 bits each
  const auto window_sum = [&amount_at] {
    uint64_t sum = 0;
    for (const auto& [time, amount] : amount_at.range(1000, 2000)) sum += amount;
    return sum;
  };

  std::atomic<bool> booking{true};
  int64_t windows = 0;
  std::thread reader([&] {
    for (; booking; ++windows) window_sum();
  });
  std::vector<std::thread> writers;
  for (int64_t thread = 0; thread < threads; ++thread) {
    writers.emplace_back([&amount_at, thread] {
      for (int64_t i = 0; i < trades; ++i) amount_at.insert(i * threads + thread, 1 + i % 7);
    });
  }
  for (std::thread& writer : writers) writer.join();
  booking = false;
  reader.join();

  // What lies in the window now is known: times 1000 to 1999 are trades 250 to 499 of every thread.
  uint64_t expected = 0;
  for (int64_t i = 1000 / threads; i < 2000 / threads; ++i) expected += threads * (1 + i % 7);
  std::printf("%ld trades in order of time, %ld windows read meanwhile; the window holds %lu now\n", amount_at.size(),
              windows, window_sum());
  const auto last = amount_at.lower_bound(threads * trades - 1);
  const bool right = amount_at.size() == threads * trades && window_sum() == expected && last &&
                     last->second == 1 + (trades - 1) % 7 && !amount_at.find(-1);
  if (!right) std::printf("wrong: the window must hold %lu\n", expected);
  return right ? 0 : 1;
}
