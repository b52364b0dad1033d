// The products <x_s, weight_k> of some tokens, the one matrix product of the stream step.
//
// The weight is rearranged once per call for packed_gemm. With AVX-512 BF16, bfloat16 streams are multiplied where they
// lie, by the weight as the sum of two bfloat16 (its 16 highest bits and the next 16 of what is left: 2e-6 of the
// float32 product), side by side as twice as many columns: at n = 4 that fills 48 of 48 lanes. All other streams are
// widened to the type of the sums first. Few rows take the unpacked product, which reads the weight once as it is.
#pragma once

#include "anabranch/core/memory.hpp"
#include "anabranch/core/packed_gemm.hpp"
#include "anabranch/mixers/stream_kernels.hpp"

namespace anabranch::detail {

template <class T>
class StreamProducts {
 public:
  using Sum = accumulate_t<T>;

  /// At most `most_tokens` at a time.
  StreamProducts(const StreamShape& shape, const StreamProjection<T>& projection, int64_t most_tokens)
      : projection_(projection),
        kernels_(stream_kernels<T>()),
        isa_(cpu_isa()),
        part_(shape.width() / projection.segments),
        columns_(projection.num_products()),
        split_(std::is_same_v<T, bfloat16> && isa_ == CpuIsa::avx512_bf16),
        few_(shape.tokens * projection.segments <= kFewRows),
        rows_(std::min(most_tokens, shape.tokens) * projection.segments),
        lost_(split_ ? columns_ : 0),
        packed_(few_ ? 0 : packed_bytes(split_ ? 2 * columns_ : columns_, part_, split_ ? 2 : sizeof(Sum))) {
    if (few_) return;
    if (!split_) {
      packed_gemm_kernels<Sum, Sum>(isa_).pack(columns_, part_, {projection.weight, part_, 1},
                                               reinterpret_cast<Sum*>(packed_.data()));
      return;
    }
    const int64_t count = columns_ * part_;
    const Temporary<bfloat16> halves(2 * count);
    bfloat16 *const high = halves.data(), *const low = high + count;
    for (int64_t i = 0; i < count; ++i) {
      const float value = static_cast<float>(projection.weight[i]);
      high[i] = bfloat16(value);
      low[i] = bfloat16(value - static_cast<float>(high[i]));
      lost_[i / part_] += static_cast<double>(value) - static_cast<float>(high[i]) - static_cast<float>(low[i]);
    }
    packed_gemm_kernels<bfloat16, bfloat16>(isa_).pack(2 * columns_, part_, {halves.data(), part_, 1},
                                                       reinterpret_cast<bfloat16*>(packed_.data()));
  }

  /// Bytes a worker needs while it calls statistics(), aligned to 64.
  std::size_t workspace_bytes() const {
    return gemm_workspace_bytes + rows_ * (2 * columns_ + 16 + (widens() ? part_ : 0)) * sizeof(Sum) + 128;
  }

  /// Products and moments of `tokens` tokens.
  void statistics(int64_t tokens, const T* x, Sum* to, std::byte* workspace) const {
    const int64_t segments = projection_.segments, rows = tokens * segments, stride = projection_.num_statistics();
    const int64_t logits = projection_.num_logits(), sums = split_ && !few_ ? 2 * columns_ : columns_;
    Sum* const products = reinterpret_cast<Sum*>(workspace + gemm_workspace_bytes);
    Sum* const widened = products + (rows_ * 2 * columns_ + 15) / 16 * 16;
    if (widens()) kernels_.widen(rows * part_, x, widened);
    if (few_) {
      const Sum* from = widens() ? widened : reinterpret_cast<const Sum*>(x);
      gemm<Sum>(rows, columns_, part_, {from, part_, 1}, {projection_.weight, part_, 1}, products, sums, false,
                workspace);
    } else if (!split_) {
      multiply<Sum>(rows, widens() ? widened : reinterpret_cast<const Sum*>(x), sums, products, workspace);
    } else if constexpr (std::is_same_v<T, bfloat16>) {
      multiply<bfloat16>(rows, x, sums, products, workspace);
    }
    for (int64_t t = 0; t < tokens; ++t, to += stride) {
      kernels_.moments(segments, part_, x + t * segments * part_, projection_.eps, projection_.centered, to + logits,
                       2);
      for (int64_t s = 0; s < segments; ++s) {
        const Sum r = to[logits + 2 * s], mean = to[logits + 2 * s + 1], *sum = products + (t * segments + s) * sums;
        for (int64_t k = 0; k < columns_; ++k) {
          to[s * columns_ + k] = r * (sums > columns_ ? sum[k] + sum[columns_ + k] + mean * Sum(lost_[k]) : sum[k]);
        }
      }
    }
  }

 private:
  static constexpr int64_t kFewRows = 8;

  bool widens() const { return !std::is_same_v<T, Sum> && (few_ || !split_); }

  template <class Stored>
  void multiply(int64_t rows, const Stored* from, int64_t columns, accumulate_t<Stored>* products,
                std::byte* workspace) const {
    const Stored* const packed = reinterpret_cast<const Stored*>(packed_.data());
    packed_gemm_kernels<Stored, Stored>(isa_).multiply(PackedGemm<Stored, Stored>{
        rows, columns, part_, {from, part_, 1}, packed, part_, products, columns, workspace, packed});
  }

  const StreamProjection<T>& projection_;
  const StreamKernels<T> kernels_;
  const CpuIsa isa_;
  const int64_t part_, columns_;
  const bool split_, few_;
  const int64_t rows_;
  std::vector<double> lost_;  // what two halves lack of the weight, by rows: it would meet the streams' mean
  const Temporary<std::byte> packed_;
};

}  // namespace anabranch::detail
