// Runs the threads of one block at a time, each as a fiber, in an order that the caller chooses.
//
// A thread runs until it must wait: at a block barrier, or at a warp collective until all lanes of its mask have come.
// It goes on when the last one arrives. If all threads wait, or wait for threads that have ended, the kernel would hang
// on a GPU: here it is a Fault. Everything else that is wrong and can be told exactly is a Fault too, and the kernel is
// abandoned where it stands.
#pragma once

#include <bit>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <string>

#include "anabranch/core/simt_fiber.hpp"
#include "anabranch/core/simt_shadow.hpp"
#include "anabranch/core/simt_wgmma.hpp"

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// The running thread's indices, as CUDA names them.
inline thread_local constinit uint3 threadIdx{};
inline thread_local constinit uint3 blockIdx{};
inline thread_local constinit dim3 blockDim{};
inline thread_local constinit dim3 gridDim{};

namespace anabranch::simt {

/// The order in which the threads of a block, and the blocks of a grid, run.
enum class Order {
  ascending,    // the lowest thread that can run, as far as it gets
  descending,   // the highest
  random,       // any, by the seed; may change at atomics too
  interleaved,  // the next one after each synchronisation and each atomic
};

struct Schedule {
  Order order = Order::ascending;
  uint64_t seed = 0;
};

/// How many launches this thread has made.
inline int64_t& num_launches() {
  thread_local int64_t count = 0;
  return count;
}

/// The schedule of the launches that this thread makes.
inline Schedule& current_schedule() {
  static thread_local Schedule schedule;
  return schedule;
}

/// Calls f() under every order, the random one with three seeds. Under AddressSanitizer a third of them: what a kernel
/// addresses depends little on the order, and a build without it runs them all.
template <class F>
void for_each_schedule(F&& f) {
#if defined(__SANITIZE_ADDRESS__)
  constexpr Schedule schedules[] = {{Order::interleaved}, {Order::random, 1}};
#else
  constexpr Schedule schedules[] = {{Order::ascending}, {Order::descending}, {Order::interleaved},
                                    {Order::random, 1}, {Order::random, 2},  {Order::random, 3}};
#endif
  for (const Schedule schedule : schedules) {
    current_schedule() = schedule;
    f();
  }
  current_schedule() = {};
}

enum class Collective { sync, shuffle, ballot, match };

/// What one lane brings to a warp collective, and what it takes away.
struct WarpCall {
  Collective kind;
  uint32_t mask;
  uint64_t value = 0;
  int source_lane = 0;  // shuffle: the lane to read
  uint64_t result = 0;
};

class Block {
 public:
  static constexpr int kMaxThreads = 1024;

  static Block& current() {
    static thread_local Block block;
    return block;
  }

  /// Runs body(context) once for each thread of one block; throws what a thread threw.
  void run(dim3 dim, int64_t shared_bytes, void (*body)(void*), void* context, std::mt19937_64& random) {
    dim_ = dim;
    num_threads_ = static_cast<int>(dim.x * dim.y * dim.z);
    body_ = body;
    context_ = context;
    random_ = &random;
    schedule_ = current_schedule();
    failure_ = nullptr;
    waiting_at_barrier_ = finished_ = 0;
    ready_.fill(0);
    shared.start_block(shared_bytes, ++epoch_);
    async.start_block(num_threads_, shared.data(), shared_bytes);
    for (Warpgroup& warpgroup : warpgroups_) warpgroup.start_block();
    if (!stacks_) stacks_ = std::make_unique<StackPool>(kMaxThreads);
    for (int t = 0; t < num_threads_; ++t) {
      Thread& thread = threads_[t];
      thread.state = State::ready;
      thread.clock.fill(0);
      thread.clock[t % 32] = 1;
      thread.context.start(stacks_->bottom(t), StackPool::kStack, &Block::entry);
      set_ready(t);
    }
    current_ = schedule_.order == Order::descending ? num_threads_ : -1;
    while (finished_ < num_threads_) {
      const int next = choose();
      if (next < 0) throw Fault(Fault::divergence, hang());
      resume(next);
      if (failure_) std::rethrow_exception(failure_);
    }
  }

  void barrier() {
    threads_[current_].state = State::at_barrier;
    if (++waiting_at_barrier_ == num_threads_) {
      waiting_at_barrier_ = 0;
      ++epoch_;
      shared.barrier();
      if (async.active()) {
        std::vector<int> everyone(static_cast<size_t>(num_threads_));
        std::iota(everyone.begin(), everyone.end(), 0);
        async.synchronize(everyone);
      }
      for (int t = 0; t < num_threads_; ++t) set_ready(t);
    }
    wait();
  }

  /// Brings `call` to the warp; returns the lane's result once every lane of its mask has come.
  uint64_t collective(const WarpCall& call) {
    Thread& self = threads_[current_];
    const int warp = current_ / 32 * 32;
    if (!(call.mask >> (current_ % 32) & 1))
      fail(Fault::invalid_collective, "is not in the mask of its own collective");
    self.call = call;
    self.state = State::at_collective;
    for (int lane = 0; lane < 32; ++lane) {
      if (!(call.mask >> lane & 1)) continue;
      if (warp + lane >= num_threads_) fail(Fault::divergence, "waits for a lane that the block does not have");
      const Thread& other = threads_[warp + lane];
      // A lane at a collective of other lanes may still come to this one.
      if (other.state != State::at_collective || other.call.mask != call.mask) return wait_for_result();
      if (other.call.kind != call.kind)
        fail(Fault::invalid_collective, "meets a lane of its mask at another collective");
    }
    resolve(warp, call);
    for (int lane = 0; lane < 32; ++lane)
      if (call.mask >> lane & 1) set_ready(warp + lane);
    return wait_for_result();
  }

  /// Waits until the mbarrier's phase of this parity has ended.
  void mbarrier_wait(uint32_t address, uint32_t parity) {
    preempt();
    while (!async.mbarrier_try_wait(current_, address, parity)) {
      threads_[current_].state = State::at_mbarrier;
      threads_[current_].mbarrier = address;
      wait();
    }
  }
  /// One arrival; threads that wait for the phase go on if it was the last.
  void mbarrier_arrive(uint32_t address, uint32_t expected_bytes) {
    preempt();
    if (async.mbarrier_arrive(current_, address, expected_bytes)) wake(address);
  }
  void bulk_complete(uint32_t address, uint32_t bytes) {
    if (async.bulk_complete(current_, address, bytes)) wake(address);
  }

  int thread() const { return current_; }
  Warpgroup& warpgroup() { return warpgroups_[current_ / kWarpgroup]; }

  /// Brings `call` to the warpgroup and returns once all its threads have come.
  void wgmma(const WgmmaCall& call) {
    const int first = current_ / kWarpgroup * kWarpgroup;
    if (first + kWarpgroup > num_threads_) fail(Fault::divergence, "issues a wgmma in a warpgroup of fewer threads");
    Thread& self = threads_[current_];
    self.wgmma = call;
    self.state = State::at_wgmma;
    for (int t = first; t < first + kWarpgroup; ++t)
      if (threads_[t].state != State::at_wgmma) return wait();
    std::array<WgmmaCall, kWarpgroup> calls;
    for (int lane = 0; lane < kWarpgroup; ++lane) calls[lane] = threads_[first + lane].wgmma;
    warpgroup().issue(async, first / kWarpgroup, calls);
    for (int t = first; t < first + kWarpgroup; ++t) set_ready(t);
    wait();
  }

  /// A point where another thread may run first, where the schedule asks for it.
  void preempt() {
    if (schedule_.order == Order::interleaved || (schedule_.order == Order::random && ((*random_)() & 1))) {
      set_ready(current_);
      wait();
    }
  }

  void access(Access kind, int64_t begin, int64_t count, int64_t element) {
    const Present now{epoch_, current_, &threads_[current_].clock};
    const Conflict conflict = shared.access(kind, begin, count, now);
    if (conflict.kind == Conflict::none) [[likely]]
      return;
    std::ostringstream what;
    what << (kind == Access::read    ? "reads"
             : kind == Access::write ? "writes"
                                     : "atomically updates")
         << " shared element " << element << " (byte " << conflict.byte << "), ";
    if (conflict.kind == Conflict::uninitialized) {
      what << "which no thread of this block has written";
      fail(Fault::uninitialized, what.str());
    }
    what << "which thread " << conflict.other << " used too, with no barrier in between";
    fail(Fault::race, what.str());
  }

  [[noreturn]] void fail(Fault::Kind kind, const std::string& what) const {
    std::ostringstream message;
    message << "simt: block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z << ") thread " << current_
            << " " << what;
    throw Fault(kind, message.str());
  }

  SharedMemoryModel shared;
  AsyncModel async;

 private:
  enum class State : uint8_t { ready, at_barrier, at_collective, at_mbarrier, at_wgmma, finished };

  struct Thread {
    Context context;
    State state;
    WarpCall call;
    WgmmaCall wgmma;
    uint32_t mbarrier;
    std::array<uint32_t, 32> clock;  // of the lanes of its warp: what this thread is ordered after
  };

  static void entry() {
    Block& block = current();
    Thread& self = block.threads_[block.current_];
    self.context.entered(block.scheduler_);
    try {
      block.body_(block.context_);
    } catch (...) {
      block.failure_ = std::current_exception();
    }
    self.state = State::finished;
    ++block.finished_;
    Context::switch_to(self.context, block.scheduler_);
    std::terminate();
  }

  void set_ready(int t) {
    threads_[t].state = State::ready;
    ready_[t / 64] |= uint64_t{1} << (t % 64);
  }

  void wait() {
    const int self = current_;
    Context::switch_to(threads_[self].context, scheduler_);
  }

  void wake(uint32_t mbarrier) {
    for (int t = 0; t < num_threads_; ++t)
      if (threads_[t].state == State::at_mbarrier && threads_[t].mbarrier == mbarrier) set_ready(t);
  }

  uint64_t wait_for_result() {
    const int self = current_;
    wait();
    return threads_[self].call.result;
  }

  void resume(int t) {
    ready_[t / 64] &= ~(uint64_t{1} << (t % 64));
    current_ = t;
    const auto index = static_cast<unsigned>(t);
    threadIdx = {index % dim_.x, index / dim_.x % dim_.y, index / (dim_.x * dim_.y)};
    Context::switch_to(scheduler_, threads_[t].context);
  }

  /// The first thread at or after `from` that can run, or -1.
  int first_ready(int from) const {
    for (int word = from / 64; word < kMaxThreads / 64; ++word) {
      uint64_t bits = ready_[word];
      if (word == from / 64) bits &= ~uint64_t{0} << (from % 64);
      if (bits) return word * 64 + std::countr_zero(bits);
    }
    return -1;
  }

  int choose() {
    switch (schedule_.order) {
      case Order::ascending:
        return first_ready(0);
      case Order::descending:
        for (int word = kMaxThreads / 64; word-- > 0;)
          if (ready_[word]) return word * 64 + 63 - std::countl_zero(ready_[word]);
        return -1;
      case Order::random:
        current_ = static_cast<int>((*random_)() % static_cast<uint64_t>(num_threads_)) - 1;
        [[fallthrough]];
      case Order::interleaved: {
        const int next = current_ + 1 < kMaxThreads ? first_ready(current_ + 1) : -1;
        return next >= 0 ? next : first_ready(0);
      }
    }
    return -1;
  }

  void resolve(int warp, const WarpCall& call) {
    uint64_t vote = 0;
    std::array<uint32_t, 32> joined{};
    for (int lane = 0; lane < 32; ++lane) {
      if (!(call.mask >> lane & 1)) continue;
      const Thread& thread = threads_[warp + lane];
      if (thread.call.value) vote |= uint64_t{1} << lane;
      for (int i = 0; i < 32; ++i) joined[i] = std::max(joined[i], thread.clock[i]);
    }
    if (call.kind == Collective::sync && async.active()) {
      std::vector<int> lanes;
      for (int lane = 0; lane < 32; ++lane)
        if (call.mask >> lane & 1) lanes.push_back(warp + lane);
      async.synchronize(lanes);
    }
    for (int lane = 0; lane < 32; ++lane) {
      if (!(call.mask >> lane & 1)) continue;
      Thread& thread = threads_[warp + lane];
      switch (call.kind) {
        case Collective::sync:
          thread.clock = joined;
          ++thread.clock[lane];
          break;
        case Collective::shuffle:
          if (!(call.mask >> thread.call.source_lane & 1)) {
            current_ = warp + lane;
            fail(Fault::invalid_collective, "shuffles from a lane that is not in the mask");
          }
          thread.call.result = threads_[warp + thread.call.source_lane].call.value;
          break;
        case Collective::ballot:
          thread.call.result = vote;
          break;
        case Collective::match:
          thread.call.result = 0;
          for (int other = 0; other < 32; ++other) {
            if ((call.mask >> other & 1) && threads_[warp + other].call.value == thread.call.value)
              thread.call.result |= uint64_t{1} << other;
          }
          break;
      }
    }
  }

  std::string hang() const {
    int at_collective = 0, at_mbarrier = 0, at_wgmma = 0, at_barrier = -1, elsewhere = -1;
    for (int t = 0; t < num_threads_; ++t) {
      at_collective += threads_[t].state == State::at_collective;
      at_mbarrier += threads_[t].state == State::at_mbarrier;
      at_wgmma += threads_[t].state == State::at_wgmma;
      if (threads_[t].state == State::at_barrier && at_barrier < 0) at_barrier = t;
      if (threads_[t].state != State::at_barrier && elsewhere < 0) elsewhere = t;
    }
    std::ostringstream what;
    what << "simt: block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z << ") hangs: of " << num_threads_
         << " threads " << waiting_at_barrier_ << " wait at __syncthreads(), " << at_collective
         << " at a warp collective, " << at_mbarrier << " at an mbarrier, " << at_wgmma << " at a wgmma, " << finished_
         << " have ended; for example ";
    if (at_barrier >= 0) what << "thread " << at_barrier << " waits at the barrier while ";
    what << "thread " << elsewhere
         << (threads_[elsewhere].state == State::finished      ? " has ended"
             : threads_[elsewhere].state == State::at_mbarrier ? " waits for a phase of an mbarrier"
                                                               : " waits for lanes of its warp or warpgroup");
    return what.str();
  }

  dim3 dim_;
  int num_threads_ = 0;
  int current_ = 0;
  int waiting_at_barrier_ = 0;
  int finished_ = 0;
  uint32_t epoch_ = 0;
  Schedule schedule_;
  std::mt19937_64* random_ = nullptr;
  void (*body_)(void*) = nullptr;
  void* context_ = nullptr;
  std::exception_ptr failure_;
  std::array<uint64_t, kMaxThreads / 64> ready_{};
  std::array<Thread, kMaxThreads> threads_;
  std::array<Warpgroup, kMaxWarpgroups> warpgroups_;
  Context scheduler_;
  std::unique_ptr<StackPool> stacks_;
};

}  // namespace anabranch::simt
