// fork() while other threads write: parent and child go on with valid indexes.
//
// A fork copies memory and one thread. What the other threads were in the middle of would stay so for ever in the
// child. So each index is known here while it lives: before a fork no writer is inside any of them, as under IndexPause
// (arena.hpp), and behind it the child forgets whoever waited for that.
//
// A thread that is a writer itself, or that holds an IndexPause, must not fork. Indexes in memory that others own
// (torch's tensors, shared memory) are not known here.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#include "anabranch/index/layout.hpp"
#include "anabranch/index/version_lock.hpp"

namespace anabranch::index_detail {

class ForkRegistry {
 public:
  /// Never destroyed: indexes may outlive whatever static object there is.
  static ForkRegistry& instance() {
    static ForkRegistry* registry = [] {
      auto* fresh = new ForkRegistry;
      pthread_atfork([] { instance().prepare(); }, [] { instance().parent(); }, [] { instance().child(); });
      return fresh;
    }();
    return *registry;
  }

  void add(int64_t* control) {
    const std::lock_guard lock(mutex_);
    controls_.push_back(control);
  }

  void remove(int64_t* control) {
    const std::lock_guard lock(mutex_);
    controls_.erase(std::find(controls_.begin(), controls_.end(), control));
  }

 private:
  static int64_t* slot(int64_t* control, int i) { return control + IndexControl::slots + i * IndexControl::slot_words; }
  static int64_t* gate(int64_t* control) { return control + IndexControl::gate; }

  void prepare() {
    mutex_.lock();
    for (int64_t* control : controls_) __atomic_fetch_add(gate(control), IndexControl::readers_unit, __ATOMIC_SEQ_CST);
    for (int64_t* control : controls_) {
      for (int i = 0; i < IndexControl::num_slots; ++i) {
        for (Spin spin; __atomic_load_n(slot(control, i), __ATOMIC_SEQ_CST) & (IndexControl::size_unit - 1);)
          spin.wait();
      }
    }
  }

  void parent() {
    for (int64_t* control : controls_) __atomic_fetch_sub(gate(control), IndexControl::readers_unit, __ATOMIC_RELEASE);
    mutex_.unlock();
  }

  /// Threads that knocked at a gate, or held one closed, are not here.
  void child() {
    for (int64_t* control : controls_) {
      for (int i = 0; i < IndexControl::num_slots; ++i) *slot(control, i) &= ~(IndexControl::size_unit - 1);
      __atomic_store_n(gate(control), 0, __ATOMIC_RELEASE);
    }
    mutex_.unlock();
  }

  std::mutex mutex_;
  std::vector<int64_t*> controls_;
};

}  // namespace anabranch::index_detail
