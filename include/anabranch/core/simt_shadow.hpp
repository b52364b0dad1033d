// Shared memory of one block on the host, with a record for every byte of who touched it and when.
//
// A race is two accesses of one byte, not both reads and not both atomic, by two threads that nothing orders. On a GPU
// it shows as a wrong number once in a thousand runs; here it is found exactly, whatever order the threads ran in,
// because the question asked is not "what came out" but "was there a barrier in between". What orders two threads:
//   __syncthreads()      everything before it, of the whole block, comes before everything after it: one epoch number.
//   __syncwarp(mask)     the same for the lanes in the mask: a clock per lane, joined over the mask (a vector clock of
//                        32 entries; between warps only the epoch counts).
// Shuffles and votes exchange values but order no memory, here as in CUDA's manual.
// A byte that was never written in this block is not to be read either: shared memory starts with whatever was there.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace anabranch::simt {

/// One moment of one thread: enough to decide whether another moment comes after it.
struct Moment {
  uint32_t epoch = 0;  // barriers of the block so far; 0: never
  uint32_t clock = 0;  // the lane's own entry of its vector clock
  int32_t thread = 0;
};

/// The present of the thread that makes an access.
struct Present {
  uint32_t epoch;
  int32_t thread;
  const std::array<uint32_t, 32>* clock;

  Moment moment() const { return {epoch, (*clock)[thread % 32], thread}; }
  bool after(const Moment& past) const {
    if (past.epoch < epoch || past.thread == thread) return true;
    return past.thread / 32 == thread / 32 && (*clock)[past.thread % 32] >= past.clock;
  }
};

/// The accesses of one kind to one byte since the last barrier, kept as one moment while one is enough.
class AccessSet {
 public:
  using LaneClocks = std::vector<std::array<uint32_t, 32>>;

  void add(const Present& now, LaneClocks& lanes) {
    const bool same_warp = last_.thread / 32 == now.thread / 32;
    if (last_.epoch < now.epoch) {
      spread_ = Spread::one;
    } else if (spread_ == Spread::one) {
      if (!now.after(last_)) widen(now, lanes);
    } else if (!same_warp) {
      spread_ = Spread::block;
      other_ = last_.thread;
    }
    last_ = now.moment();
    if (spread_ == Spread::warp) lanes[lanes_][now.thread % 32] = last_.clock;
  }

  /// The thread of an access that is not ordered before `now`, or -1.
  int unordered(const Present& now, const LaneClocks& lanes) const {
    if (last_.epoch < now.epoch) return -1;
    if (spread_ == Spread::one) return now.after(last_) ? -1 : last_.thread;
    const int warp = last_.thread / 32;
    if (spread_ == Spread::block) return warp != now.thread / 32 ? last_.thread : other_;
    if (warp != now.thread / 32) return last_.thread;
    for (int lane = 0; lane < 32; ++lane) {
      if (warp * 32 + lane != now.thread && lanes[lanes_][lane] > (*now.clock)[lane]) return warp * 32 + lane;
    }
    return -1;
  }

  void clear() { last_.epoch = 0; }

 private:
  enum class Spread : uint8_t { one, warp, block };

  void widen(const Present& now, LaneClocks& lanes) {
    other_ = last_.thread;
    if (last_.thread / 32 != now.thread / 32) {
      spread_ = Spread::block;
      return;
    }
    spread_ = Spread::warp;
    lanes_ = static_cast<uint32_t>(lanes.size());
    lanes.push_back({});
    lanes.back()[last_.thread % 32] = last_.clock;
  }

  Moment last_;
  int32_t other_ = 0;  // Spread::block: a thread of another warp than last_.thread's
  uint32_t lanes_ = 0;
  Spread spread_ = Spread::one;
};

enum class Access { read, write, atomic };

/// What is wrong with an access; `other` is the thread it collides with.
struct Conflict {
  enum Kind { none, race, uninitialized } kind = none;
  int64_t byte = 0;
  int other = -1;
};

class SharedMemoryModel {
 public:
  /// Starts a block with `bytes` of shared memory whose contents are arbitrary; `epoch` is larger than any before.
  void start_block(int64_t bytes, uint32_t epoch) {
    bytes_.resize(static_cast<size_t>(bytes));
    std::fill(bytes_.begin(), bytes_.end(), static_cast<unsigned char>(0xA5));
    records_.resize(static_cast<size_t>(bytes));
    lanes_.clear();
    first_epoch_ = epoch;
  }

  /// To be called when the epoch advances: what was kept per lane is ordered now.
  void barrier() { lanes_.clear(); }

  unsigned char* data() { return bytes_.data(); }
  int64_t size() const { return static_cast<int64_t>(bytes_.size()); }

  Conflict access(Access kind, int64_t begin, int64_t count, const Present& now) {
    for (int64_t byte = begin; byte < begin + count; ++byte) {
      Record& record = records_[static_cast<size_t>(byte)];
      if (kind != Access::write && record.initialized < first_epoch_) return {Conflict::uninitialized, byte, -1};
      if (!now.after(record.write)) return {Conflict::race, byte, record.write.thread};
      if (kind != Access::atomic) {
        if (const int other = record.atomics.unordered(now, lanes_); other >= 0) return {Conflict::race, byte, other};
      }
      if (kind != Access::read) {
        if (const int other = record.reads.unordered(now, lanes_); other >= 0) return {Conflict::race, byte, other};
      }
      if (kind == Access::read) {
        record.reads.add(now, lanes_);
      } else if (kind == Access::atomic) {
        record.atomics.add(now, lanes_);
      } else {
        record.write = now.moment();
        record.initialized = now.epoch;
        record.reads.clear();
        record.atomics.clear();
      }
    }
    return {};
  }

 private:
  struct Record {
    Moment write;
    uint32_t initialized = 0;  // epoch of the last write
    AccessSet reads;
    AccessSet atomics;
  };

  std::vector<unsigned char> bytes_;
  std::vector<Record> records_;
  AccessSet::LaneClocks lanes_;
  uint32_t first_epoch_ = 1;
};

}  // namespace anabranch::simt
