// pair_encode (pair_encode.hpp defines it) on the CPU: each pair is joined in the first cache (pair_join_cpu.hpp) and
// its keys go straight through the kernels of the widest vectors there are (pair_encode_kernels.hpp).
//
// The backward joins again instead of keeping anything. Gradients of weight and table are summed by tiles of 64 pairs
// into at most 32 sets of sums, dz by whoever owns the row; the borders of both depend on the data alone, so results
// are the same for every number of threads. With no activation a slot's gradient is the same for all slots of a row:
// rows sum it once, and a last pass gives it to the slots that hold a key.
#pragma once

#include <numeric>

#include "anabranch/core/cpu_features.hpp"
#include "anabranch/temporal/pair_encode.hpp"
#include "anabranch/temporal/pair_join_cpu.hpp"

namespace anabranch {

/// The weight's columns, then the code table, as rows of `padded` channels; what is past the real ones is 0.
template <class Sum>
struct EncodeRows {
  int64_t features, padded;
  const Sum* parameters;
};

/// With no activation a pair is a sum of some of these rows times a number each: the sums of z, and how many keys have
/// each code.
template <class Sum>
struct EncodeFactors {
  int64_t count;
  const int32_t* rows;
  const Sum* values;
};

template <class Sum>
struct PairEncodeKernels {
  /// out [padded] of a pair with `count` keys.
  void (*relu)(const EncodeRows<Sum>&, int64_t count, const Sum* z, const int32_t* codes, Sum* out);
  /// Writes dz [count, features], adds to gradients [features + 64, padded]; partial has 16 numbers for each of dz.
  void (*relu_backward)(const EncodeRows<Sum>&, int64_t count, const Sum* z, const int32_t* codes, const Sum* dout,
                        Sum* partial, Sum* dz, Sum* gradients);
  /// out [padded] = factors times rows.
  void (*linear)(const EncodeRows<Sum>&, const EncodeFactors<Sum>& factors, Sum* out);
  /// Writes dz [features], adds to gradients.
  void (*linear_backward)(const EncodeRows<Sum>&, const EncodeFactors<Sum>& factors, const Sum* dout, Sum* dz,
                          Sum* gradients);
};

/// The kernels compiled for `isa`; one specialisation per translation unit. AVX-512 BF16 adds nothing here.
template <CpuIsa isa, class Sum>
PairEncodeKernels<Sum> pair_encode_kernels_for();

#define ANABRANCH_PAIR_ENCODE_KERNELS(isa, qualifier)                                \
  qualifier template PairEncodeKernels<float> pair_encode_kernels_for<isa, float>(); \
  qualifier template PairEncodeKernels<double> pair_encode_kernels_for<isa, double>();

ANABRANCH_PAIR_ENCODE_KERNELS(CpuIsa::portable, extern)
#if defined(__x86_64__)
ANABRANCH_PAIR_ENCODE_KERNELS(CpuIsa::avx2, extern)
ANABRANCH_PAIR_ENCODE_KERNELS(CpuIsa::avx512, extern)
#endif

template <class Sum>
PairEncodeKernels<Sum> pair_encode_kernels() {
#if defined(__x86_64__)
  if (cpu_isa() >= CpuIsa::avx512) return pair_encode_kernels_for<CpuIsa::avx512, Sum>();
  if (cpu_isa() >= CpuIsa::avx2) return pair_encode_kernels_for<CpuIsa::avx2, Sum>();
#endif
  return pair_encode_kernels_for<CpuIsa::portable, Sum>();
}

namespace detail {

/// The parameters as EncodeRows has them.
template <class T>
class PackedEncodeRows {
 public:
  using Sum = accumulate_t<T>;

  explicit PackedEncodeRows(const PairEncode<T>& problem)
      : features_(problem.sets.features),
        padded_((problem.channels + 15) / 16 * 16),
        memory_((features_ + num_pair_codes) * padded_) {
    std::fill_n(memory_.data(), numbers(), Sum(0));
    for (int64_t h = 0; h < problem.channels; ++h) {
      for (int64_t f = 0; f < features_; ++f) {
        memory_.data()[f * padded_ + h] = static_cast<Sum>(problem.weight[h * features_ + f]);
      }
    }
    for (int64_t code = 0; code < num_pair_codes; ++code) {
      Sum* to = memory_.data() + (features_ + code) * padded_;
      const T* from = problem.code_table + code * problem.channels;
      for (int64_t h = 0; h < problem.channels; ++h) to[h] = static_cast<Sum>(from[h]);
    }
  }

  int64_t padded() const { return padded_; }
  int64_t numbers() const { return (features_ + num_pair_codes) * padded_; }
  EncodeRows<Sum> rows() const { return {features_, padded_, memory_.data()}; }

 private:
  int64_t features_, padded_;
  Temporary<Sum> memory_;
};

/// One worker's scratch: a pair at a time is joined and its sums are taken.
template <class T>
struct EncodeScratch {
  using Sum = accumulate_t<T>;

  explicit EncodeScratch(const PairEncode<T>& problem, int64_t padded)
      : join(problem.sets),
        positions(2 * problem.sets.slots),
        z((2 * problem.sets.slots + 1) * problem.sets.features),
        factors(problem.sets.features + num_pair_codes),
        factor_rows(problem.sets.features + num_pair_codes),
        row(padded),
        partial(problem.activation == PairActivation::relu ? 2 * problem.sets.slots * problem.sets.features * 16 : 0) {
    std::fill_n(row.data(), padded, Sum(0));
  }

  /// What a pair is made of with no activation. Rows of the weight always take part, so that what is not finite shows.
  EncodeFactors<Sum> count(const SlotPairs<T>& sets, int64_t pair) {
    Sum* values = factors.data();
    int32_t* rows = factor_rows.data();
    std::fill_n(values, sets.features, Sum(0));
    with_features(sets.features, [&](auto features) {
      for (int side = 0; side < 2; ++side) {
        const T* row = sets.z + sets.row(pair, side) * sets.slots * features;
        if constexpr (!std::is_integral_v<decltype(features)>) {  // a constant: the sums stay in a register
          Sum sums[decltype(features)::value] = {};
          join.for_used(sets, pair, side, [&](int64_t slot) {
            for (int64_t f = 0; f < features; ++f) sums[f] += static_cast<Sum>(row[slot * features + f]);
          });
          for (int64_t f = 0; f < features; ++f) values[f] += sums[f];
        } else {
          join.for_used(sets, pair, side, [&](int64_t slot) {
            for (int64_t f = 0; f < features; ++f) values[f] += static_cast<Sum>(row[slot * features + f]);
          });
        }
      }
    });
    std::iota(rows, rows + sets.features, 0);
    int32_t counts[num_pair_codes] = {};
    for (int64_t k = 0; k < join.count(); ++k) ++counts[join.codes()[k]];
    int64_t used = sets.features;
    for (int32_t code = 1; code < num_pair_codes; ++code) {
      rows[used] = static_cast<int32_t>(sets.features) + code;
      values[used] = static_cast<Sum>(counts[code]);
      used += counts[code] > 0;
    }
    return {used, rows, values};
  }

  SlotJoin join;
  Temporary<int16_t> positions;
  Temporary<Sum> z, factors;
  Temporary<int32_t> factor_rows;
  Temporary<Sum> row, partial;
};

/// Pairs that one worker should get at least.
template <class T>
int64_t encode_grain(const PairEncode<T>& problem) {
  return std::max<int64_t>(1, 262144 / std::max<int64_t>(1, problem.sets.slots * (problem.channels + 64)));
}

}  // namespace detail

/// pair_encode_reference, up to rounding.
template <class T>
void pair_encode_cpu(const PairEncode<T>& problem, T* out) {
  using Sum = accumulate_t<T>;
  const SlotPairs<T>& sets = problem.sets;
  const auto kernels = pair_encode_kernels<Sum>();
  const detail::PackedEncodeRows<T> packed(problem);
  const EncodeRows<Sum> rows = packed.rows();
  parallel_for(sets.pairs, detail::encode_grain(problem), [&](int64_t begin, int64_t end) {
    detail::EncodeScratch<T> scratch(problem, rows.padded);
    for (int64_t p = begin; p < end; ++p) {
      if (problem.activation == PairActivation::relu) {
        scratch.join.join(sets, p, scratch.positions.data(), scratch.z.data());
        kernels.relu(rows, scratch.join.count(), scratch.z.data(), scratch.join.codes(), scratch.row.data());
      } else {
        scratch.join.join(sets, p, scratch.positions.data());
        kernels.linear(rows, scratch.count(sets, p), scratch.row.data());
      }
      for (int64_t h = 0; h < problem.channels; ++h) out[p * problem.channels + h] = T(scratch.row.data()[h]);
    }
  });
}

}  // namespace anabranch

#include "anabranch/temporal/pair_encode_backward_cpu.hpp"
