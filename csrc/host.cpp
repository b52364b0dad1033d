// The module `_host` and its threads. It links no torch, so it cannot have torch's pool: threads live as long as a
// call, and Python says how many.
#include "host.hpp"

#include <system_error>
#include <thread>
#include <vector>

#include "anabranch/core/parallel.hpp"

namespace anabranch {
namespace {

/// Where the system has no more threads, this one does their work.
void run_workers(int num_workers, void (*body)(int, void*), void* context) {
  std::vector<std::thread> threads;
  threads.reserve(num_workers);
  int started = 1;
  try {
    for (; started < num_workers; ++started) threads.emplace_back(body, started, context);
  } catch (const std::system_error&) {
  }
  body(0, context);
  for (int worker = started; worker < num_workers; ++worker) body(worker, context);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace anabranch

NB_MODULE(_host, module) {
  nanobind::set_leak_warnings(false);  // an index that a global variable still has at the end is no error
  anabranch::parallel_backend() = {[] { return anabranch::HostThreads::count(); }, anabranch::run_workers};
  anabranch::bind_bskiplist(module);
  anabranch::bind_predicted_timeline(module);
}
