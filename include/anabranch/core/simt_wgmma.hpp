// wgmma on the host: descriptors decoded as the PTX ISA defines them, products into the registers it names.
//
// An operation is checked when all 128 threads have issued it and carried out as late as it may be: at the
// wgmma.wait_group that asks for its group. Registers read before that hold old sums, and a stage overwritten before
// that gives wrong ones. Only the layout that this library uses is modelled, the 128-byte swizzle of 16-bit elements:
//   K-major   rows of 128 bytes (64 elements of k), 8 of them every SBO bytes
//   MN-major  rows of 128 bytes (64 rows or columns of the operand), one for each k, 8 of them every SBO bytes; the
//             next 64 rows or columns LBO bytes further
// and bits 4-6 of every address are then exclusive-ored with its bits 7-9.
#pragma once

#include "anabranch/core/scalar.hpp"
#include "anabranch/core/simt_async.hpp"

namespace anabranch::simt {

inline constexpr int kWarpgroup = 128;

/// What one thread brings to a wgmma.mma_async.
struct WgmmaCall {
  uint64_t a, b;  // descriptors
  int columns;
  bool a_mn_major, b_mn_major, bfloat16_inputs, accumulate;
  float* sums;  // columns / 2 registers

  bool same_operation(const WgmmaCall& other) const {
    return a == other.a && b == other.b && columns == other.columns && a_mn_major == other.a_mn_major &&
           b_mn_major == other.b_mn_major && bfloat16_inputs == other.bfloat16_inputs && accumulate == other.accumulate;
  }
};

/// Operand of a wgmma: element (line, k) of `lines` rows or columns and 16 k.
struct WgmmaOperand {
  uint32_t start, leading, stride;
  bool mn_major;

  WgmmaOperand(int thread, const AsyncModel& memory, uint64_t descriptor, bool mn_major_) : mn_major(mn_major_) {
    start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
    leading = static_cast<uint32_t>(descriptor >> 16 & 0x3fff) << 4;
    stride = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
    const auto base_offset = descriptor >> 49 & 7, swizzle = descriptor >> 62;
    if (swizzle != 1) memory.fail(thread, Fault::invalid_collective, "uses a swizzle that the harness does not model");
    if (base_offset != 0 || (start >> 7 & 7) != 0)
      memory.fail(thread, Fault::misaligned, "starts an operand off the 1024-byte period of its swizzle");
  }
  uint32_t address(int line, int k) const {
    const uint32_t linear = mn_major ? start + static_cast<uint32_t>(line / 64) * leading + line % 64 * 2 +
                                           static_cast<uint32_t>(k / 8) * stride + k % 8 * 128
                                     : start + static_cast<uint32_t>(line / 8) * stride + line % 8 * 128 + k * 2;
    return linear ^ (linear >> 7 & 7) << 4;
  }
};

class Warpgroup {
 public:
  void start_block() {
    committed_ = done_ = 0;
    open_.clear();
    groups_.clear();
    fenced_.fill(false);
    commits_.fill(0);
  }

  void fence(int lane) { fenced_[lane] = true; }

  /// All 128 threads have come with calls[0 .. 127].
  void issue(AsyncModel& memory, int index, const std::array<WgmmaCall, kWarpgroup>& calls) {
    const int first = index * kWarpgroup;
    for (int lane = 0; lane < kWarpgroup; ++lane) {
      if (!calls[lane].same_operation(calls[0]))
        memory.fail(first + lane, Fault::invalid_collective, "joins a wgmma with other operands than its warpgroup's");
      if (!fenced_[lane])
        memory.fail(first + lane, Fault::race, "issues a wgmma with no wgmma.fence since its registers were free");
      if (commits_[lane] != committed_)
        memory.fail(first + lane, Fault::invalid_collective, "issues a wgmma before it committed the last group");
    }
    const AsyncModel::Shared knows = memory.common(first, kWarpgroup);
    const WgmmaCall& call = calls[0];
    const auto read = [&](uint64_t descriptor, bool mn_major, int lines) {
      const WgmmaOperand operand(first, memory, descriptor, mn_major);
      for (int line = 0; line < lines; line += mn_major ? 8 : 1) {
        for (int k = 0; k < 16; k += mn_major ? 1 : 8)
          memory.tensor_read(first, index, committed_ + 1, knows, operand.address(line, k));
      }
    };
    read(call.a, call.a_mn_major, 64);
    read(call.b, call.b_mn_major, call.columns);
    open_.push_back(calls);
  }

  void commit(int lane) {
    if (++commits_[lane] <= committed_) return;
    ++committed_;
    groups_.push_back(std::move(open_));
    open_.clear();
  }

  void wait(AsyncModel& memory, int index, int lane, int groups_left) {
    const uint32_t target = commits_[lane] - std::min<uint32_t>(commits_[lane], static_cast<uint32_t>(groups_left));
    while (done_ < target) {
      for (const auto& calls : groups_.front()) multiply(memory, index, calls);
      groups_.pop_front();
      ++done_;
    }
    memory.tensor_reads_done(index * kWarpgroup + lane, index, target);
    fenced_[lane] = false;
  }

 private:
  static void multiply(const AsyncModel& memory, int index, const std::array<WgmmaCall, kWarpgroup>& calls) {
    const WgmmaCall& call = calls[0];
    const int first = index * kWarpgroup;
    // [k][line], so that the innermost loop below runs over columns
    const auto fetch = [&](uint64_t descriptor, bool mn_major, int lines) {
      const WgmmaOperand operand(first, memory, descriptor, mn_major);
      std::vector<float> values(static_cast<size_t>(16 * lines));
      for (int k = 0; k < 16; ++k) {
        for (int line = 0; line < lines; ++line) {
          uint16_t bits;
          std::memcpy(&bits, memory.at(operand.address(line, k)), 2);
          values[k * lines + line] = call.bfloat16_inputs ? static_cast<float>(detail::bits_to<bfloat16>(bits))
                                                          : static_cast<float>(detail::bits_to<half>(bits));
        }
      }
      return values;
    };
    const int columns = call.columns;
    const std::vector<float> a = fetch(call.a, call.a_mn_major, 64), b = fetch(call.b, call.b_mn_major, columns);
    std::vector<float> row_sums(static_cast<size_t>(columns));
    for (int row = 0; row < 64; ++row) {
      std::fill(row_sums.begin(), row_sums.end(), 0.0f);
      for (int k = 0; k < 16; ++k) {
        const float left = a[k * 64 + row];
        const float* right = b.data() + k * columns;
        for (int column = 0; column < columns; ++column) row_sums[column] += left * right[column];
      }
      // Fragment: warp w has rows 16w .. 16w + 15; register r of a lane lies in row lane / 4 (+ 8 if r % 4 >= 2) and
      // column 8 (r / 4) + 2 (lane % 4) + r % 2.
      for (int column = 0; column < columns; ++column) {
        const int lane = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
        const int reg = column / 8 * 4 + row % 16 / 8 * 2 + column % 2;
        float& sum = calls[lane].sums[reg];
        sum = call.accumulate ? sum + row_sums[column] : row_sums[column];
      }
    }
  }

  uint32_t committed_ = 0, done_ = 0;
  std::vector<std::array<WgmmaCall, kWarpgroup>> open_;
  std::deque<std::vector<std::array<WgmmaCall, kWarpgroup>>> groups_;
  std::array<bool, kWarpgroup> fenced_{};
  std::array<uint32_t, kWarpgroup> commits_{};
};

}  // namespace anabranch::simt
