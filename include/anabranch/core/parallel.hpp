// Parallel loops of the CPU kernels, over whatever thread pool the host program has.
//
// A kernel asks for workers; who provides them is one hook. The default hook starts std::threads, so the headers work
// in any C++ program; csrc/torch.hpp replaces it by torch's own pool, because two pools in one process would fight
// for the cores. Work is cut into tiles whose borders depend on the data alone, never on the number of workers: that
// is what makes results bitwise equal for every thread count.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace anabranch {

struct ParallelBackend {
  int (*num_threads)();
  /// Calls body(worker, context) for every worker in [0, num_workers), possibly at the same time, and returns after
  /// all.
  void (*run)(int num_workers, void (*body)(int worker, void* context), void* context);
};

inline ParallelBackend& parallel_backend() {
  static ParallelBackend backend{[] { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); },
                                 [](int num_workers, void (*body)(int, void*), void* context) {
                                   std::vector<std::thread> threads;
                                   for (int worker = 1; worker < num_workers; ++worker)
                                     threads.emplace_back(body, worker, context);
                                   body(0, context);
                                   for (auto& thread : threads) thread.join();
                                 }};
  return backend;
}

/// Calls f(worker) once for each of `num_workers` workers. f must not throw.
template <class F>
void parallel_workers(int num_workers, F&& f) {
  if (num_workers <= 1) return f(0);
  auto body = [](int worker, void* context) { (*static_cast<std::remove_reference_t<F>*>(context))(worker); };
  parallel_backend().run(num_workers, body, &f);
}

/// Number of workers worth waking for `work` units when one worker should get at least `grain` of them.
inline int workers_for(int64_t work, int64_t grain) {
  const int64_t useful = std::max<int64_t>(1, work / std::max<int64_t>(1, grain));
  return static_cast<int>(std::min<int64_t>(useful, parallel_backend().num_threads()));
}

/// f(begin, end) over contiguous shares of [0, n).
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  const int num_workers = workers_for(n, grain);
  parallel_workers(num_workers, [&](int worker) {
    const int64_t begin = n * worker / num_workers;
    const int64_t end = n * (worker + 1) / num_workers;
    if (begin < end) f(begin, end);
  });
}

/// f(tile, worker) for every tile in [0, num_tiles); idle workers take the next tile, so uneven tiles balance.
template <class F>
void parallel_tiles(int64_t num_tiles, int num_workers, F&& f) {
  std::atomic<int64_t> next{0};
  parallel_workers(num_workers, [&](int worker) {
    for (int64_t tile; (tile = next.fetch_add(1, std::memory_order_relaxed)) < num_tiles;) f(tile, worker);
  });
}

}  // namespace anabranch
