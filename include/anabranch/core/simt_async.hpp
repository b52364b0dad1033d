// Hopper's asynchronous world on the host: mbarriers, copies that complete on them, and who may see whose bytes.
//
// What orders two accesses here is PTX's causality order, kept as vector clocks with one entry per agent. Agents are
// the threads, the warpgroups' tensor cores (their reads end at wgmma.wait_group) and, for each mbarrier, the copies
// that complete on it. An arrival hands the barrier the arriving thread's clock; a successful wait takes the clock of
// the phase it waited for; __syncthreads and __syncwarp join clocks. Each thread has a second clock of what it knows to
// have crossed from the generic to the async proxy: fence.proxy.async copies the first into it, arrivals and waits
// carry it. So a byte written by a thread may be read by a wgmma only if a fence lies on the path between them,
// wherever it lies.
//
// Memory used this way is recorded in pieces of 16 bytes, the unit of every copy. Data of a cp.async arrives as late as
// it may, at the wait that asks for it; a TMA box arrives at once, which no correct kernel can tell from later.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <sstream>
#include <vector>

#include "anabranch/core/simt_fault.hpp"

namespace anabranch::simt {

/// Where dynamic shared memory starts: aligned as CUDA promises, to 128 bytes and no more.
inline constexpr uint32_t kSharedBase = 384;
inline constexpr int kPieceBytes = 16, kMaxWarpgroups = 8, kMaxMbarriers = 64;

class AsyncModel {
 public:
  using Clock = std::vector<uint32_t>;

  void start_block(int num_threads, unsigned char* memory, int64_t bytes) {
    memory_ = memory;
    bytes_ = bytes;
    num_threads_ = num_threads;
    barriers_.clear();
    active_ = false;
  }

  bool active() const { return active_; }
  unsigned char* at(uint32_t address) const { return memory_ + (address - kSharedBase); }

  void mbarrier_init(int thread, uint32_t address, uint32_t count) {
    if (!active_) activate();
    if (address % 8 || !in_range(address, 8)) fail(thread, Fault::misaligned, "initialises an mbarrier it cannot have");
    if (count == 0 || barriers_.size() == kMaxMbarriers || find(address))
      fail(thread, Fault::invalid_collective, "initialises an mbarrier twice, for nobody, or one too many");
    Barrier barrier;
    barrier.address = address;
    barrier.count = barrier.pending = count;
    barrier.agent = num_threads_ + kMaxWarpgroups + static_cast<int>(barriers_.size());
    barrier.creator = thread;
    barrier.created = threads_[thread].clock[thread];
    for (Clock* clock : {&barrier.gathered, &barrier.released, &barrier.gathered_proxy, &barrier.released_proxy})
      clock->assign(num_agents(), 0);
    barriers_.push_back(barrier);
  }

  /// One arrival; with bytes > 0 it first adds them to what the phase waits for. True if a phase ended.
  bool mbarrier_arrive(int thread, uint32_t address, uint32_t expected_bytes) {
    Barrier& barrier = usable(thread, address);
    ThreadState& self = threads_[thread];
    if (barrier.pending == 0) fail(thread, Fault::invalid_collective, "arrives at an mbarrier once too often");
    join(barrier.gathered, self.clock);
    join(barrier.gathered_proxy, self.proxy);
    ++self.clock[thread];
    barrier.missing_bytes += expected_bytes;
    --barrier.pending;
    return complete(barrier);
  }

  /// True if the phase of this parity has ended; the thread then knows what its arrivals knew.
  bool mbarrier_try_wait(int thread, uint32_t address, uint32_t parity) {
    Barrier& barrier = usable(thread, address);
    if ((barrier.phase & 1) == parity) return false;
    join(threads_[thread].clock, barrier.released);
    join(threads_[thread].proxy, barrier.released_proxy);
    return true;
  }

  void fence_proxy_async(int thread) {
    if (!active_) return;
    ThreadState& self = threads_[thread];
    join(self.proxy, self.clock);
    ++self.clock[thread];  // what the thread writes from here on has not been fenced
  }

  /// __syncwarp, or __syncthreads with every thread of the block.
  void synchronize(const std::vector<int>& threads) {
    if (!active_) return;
    Clock clock(num_agents(), 0), proxy(num_agents(), 0);
    for (const int t : threads) {
      join(clock, threads_[t].clock);
      join(proxy, threads_[t].proxy);
    }
    for (const int t : threads) {
      threads_[t].clock = clock;
      threads_[t].proxy = proxy;
      ++threads_[t].clock[t];
    }
  }

  /// cp.async of 16 bytes, zeros where source is null.
  void copy(int thread, uint32_t destination, const void* source) {
    if (!active_) activate();
    Piece& piece = writable(thread, destination);
    const ThreadState& self = threads_[thread];
    if (piece.written && !seen(piece, self.clock, self.clock)) conflict(thread, destination, "overwrites");
    piece.written = piece.generic = piece.in_flight = true;
    piece.agent = thread;
    Pending pending{destination, {}};
    if (source) std::memcpy(pending.bytes.data(), source, kPieceBytes);
    threads_[thread].uncommitted.push_back(pending);
  }

  void copy_commit(int thread) {
    if (!active_) activate();
    threads_[thread].groups.push_back(std::move(threads_[thread].uncommitted));
    threads_[thread].uncommitted.clear();
  }

  void copy_wait(int thread, int groups_left) {
    if (!active_) activate();
    ThreadState& self = threads_[thread];
    while (static_cast<int>(self.groups.size()) > groups_left) {
      for (const Pending& pending : self.groups.front()) {
        std::memcpy(at(pending.destination), pending.bytes.data(), kPieceBytes);
        Piece& piece = piece_at(pending.destination);
        piece.in_flight = false;
        piece.clock = self.clock[thread];
      }
      self.groups.pop_front();
    }
  }

  /// 16 bytes of a bulk copy that `thread` started and that completes on the mbarrier.
  void bulk_write(int thread, uint32_t barrier_address, uint32_t destination, const void* source) {
    Barrier& barrier = usable(thread, barrier_address);
    Piece& piece = writable(thread, destination);
    const ThreadState& self = threads_[thread];
    if (piece.written && !seen(piece, self.clock, self.proxy)) conflict(thread, destination, "starts a copy over");
    std::memcpy(at(destination), source, kPieceBytes);
    piece.written = true;
    piece.generic = piece.in_flight = false;
    piece.agent = barrier.agent;
    piece.clock = barrier.copies + 1;
  }

  /// The end of a bulk copy; true if a phase ended.
  bool bulk_complete(int thread, uint32_t barrier_address, uint32_t bytes) {
    Barrier& barrier = usable(thread, barrier_address);
    barrier.gathered[barrier.agent] = ++barrier.copies;
    barrier.missing_bytes -= bytes;
    return complete(barrier);
  }

  /// The clocks that all of a warpgroup's threads share: what its tensor core operations come after.
  struct Shared {
    Clock clock, proxy;
  };
  Shared common(int first_thread, int count) const {
    Shared shared{threads_[first_thread].clock, threads_[first_thread].proxy};
    for (int t = first_thread + 1; t < first_thread + count; ++t) {
      for (size_t i = 0; i < shared.clock.size(); ++i) {
        shared.clock[i] = std::min(shared.clock[i], threads_[t].clock[i]);
        shared.proxy[i] = std::min(shared.proxy[i], threads_[t].proxy[i]);
      }
    }
    return shared;
  }

  /// A tensor core of `warpgroup` reads 16 bytes, until its group of wgmma number `group` is waited for.
  void tensor_read(int thread, int warpgroup, uint32_t group, const Shared& knows, uint32_t address) {
    if (!in_range(address, kPieceBytes)) fail(thread, Fault::out_of_range, "multiplies beyond shared memory");
    Piece& piece = piece_at(address);
    if (!piece.written) fail(thread, Fault::uninitialized, "multiplies shared memory that nobody has written");
    if (!seen(piece, knows.clock, knows.proxy)) conflict(thread, address, "multiplies");
    piece.reads[warpgroup] = group;
  }
  void tensor_reads_done(int thread, int warpgroup, uint32_t group) {
    uint32_t& known = threads_[thread].clock[num_threads_ + warpgroup];
    known = std::max(known, group);
  }

  [[noreturn]] void fail(int thread, Fault::Kind kind, const std::string& what) const {
    throw Fault(kind, "simt: thread " + std::to_string(thread) + " " + what);
  }

 private:
  struct Barrier {
    uint32_t address = 0, count = 0, pending = 0;
    int64_t missing_bytes = 0;
    uint32_t phase = 0;   // phases that have ended
    uint32_t copies = 0;  // bulk copies that have ended
    int agent = 0, creator = 0;
    uint32_t created = 0;
    Clock gathered, released, gathered_proxy, released_proxy;
  };
  struct Pending {
    uint32_t destination;
    std::array<unsigned char, kPieceBytes> bytes;
  };
  struct ThreadState {
    Clock clock, proxy;
    std::vector<Pending> uncommitted;
    std::deque<std::vector<Pending>> groups;
  };
  struct Piece {
    bool written = false, generic = false, in_flight = false;
    int agent = 0;
    uint32_t clock = 0;
    std::array<uint32_t, kMaxWarpgroups> reads{};
  };

  size_t num_agents() const { return static_cast<size_t>(num_threads_ + kMaxWarpgroups + kMaxMbarriers); }

  void activate() {
    active_ = true;
    threads_.assign(static_cast<size_t>(num_threads_), {Clock(num_agents(), 0), Clock(num_agents(), 0), {}, {}});
    for (int t = 0; t < num_threads_; ++t) threads_[t].clock[t] = 1;
    pieces_.assign(static_cast<size_t>(bytes_ / kPieceBytes), {});
  }

  static void join(Clock& into, const Clock& other) {
    for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], other[i]);
  }

  bool complete(Barrier& barrier) {
    if (barrier.pending != 0 || barrier.missing_bytes != 0) return false;
    ++barrier.phase;
    barrier.pending = barrier.count;
    barrier.released = barrier.gathered;
    barrier.released_proxy = barrier.gathered_proxy;
    return true;
  }

  Barrier* find(uint32_t address) {
    for (Barrier& barrier : barriers_)
      if (barrier.address == address) return &barrier;
    return nullptr;
  }
  Barrier& usable(int thread, uint32_t address) {
    Barrier* barrier = find(address);
    if (!barrier) fail(thread, Fault::uninitialized, "uses an mbarrier that nobody has initialised");
    if (thread != barrier->creator && threads_[thread].clock[barrier->creator] < barrier->created)
      fail(thread, Fault::race, "uses an mbarrier whose initialisation it cannot have seen");
    return *barrier;
  }

  bool in_range(uint32_t address, int64_t count) const {
    return address >= kSharedBase && address - kSharedBase + count <= bytes_;
  }
  Piece& piece_at(uint32_t address) { return pieces_[(address - kSharedBase) / kPieceBytes]; }

  /// The piece of a write, which comes after every read of its last contents.
  Piece& writable(int thread, uint32_t address) {
    if (address % kPieceBytes) fail(thread, Fault::misaligned, "copies to an address that is not a multiple of 16");
    if (!in_range(address, kPieceBytes)) fail(thread, Fault::out_of_range, "copies beyond shared memory");
    Piece& piece = piece_at(address);
    for (int w = 0; w < kMaxWarpgroups; ++w) {
      if (piece.reads[w] > threads_[thread].clock[num_threads_ + w]) conflict(thread, address, "overwrites");
    }
    return piece;
  }

  static bool seen(const Piece& piece, const Clock& clock, const Clock& proxy) {
    return !piece.in_flight && (piece.generic ? proxy : clock)[piece.agent] >= piece.clock;
  }

  [[noreturn]] void conflict(int thread, uint32_t address, const char* does) const {
    std::ostringstream what;
    what << does << " shared byte " << address - kSharedBase
         << ", whose last use nothing orders before it: no wait, no arrival after the last use, or no proxy fence";
    fail(thread, Fault::race, what.str());
  }

  unsigned char* memory_ = nullptr;
  int64_t bytes_ = 0;
  int num_threads_ = 0;
  bool active_ = false;
  std::vector<Barrier> barriers_;
  std::vector<ThreadState> threads_;
  std::vector<Piece> pieces_;
};

}  // namespace anabranch::simt
