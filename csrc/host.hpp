// The extension module `_host`: objects of the host language, by nanobind and without torch.
#pragma once

#include <nanobind/nanobind.h>

namespace anabranch {

void bind_bskiplist(nanobind::module_& module);
void bind_predicted_timeline(nanobind::module_& module);

/// Kernels of `_host` that this thread calls use so many threads while this lives; one otherwise.
class HostThreads {
 public:
  explicit HostThreads(int threads) : before_(count()) { count() = threads; }
  HostThreads(const HostThreads&) = delete;
  HostThreads& operator=(const HostThreads&) = delete;
  ~HostThreads() { count() = before_; }

  static int& count() {
    thread_local int threads = 1;
    return threads;
  }

 private:
  int before_;
};

}  // namespace anabranch
