// A pair as pair_encode's kernels have it: joined in shared memory (pair_on_chip.cuh), with its keys' codes and sums of
// z there too. Shared memory: that of the join and 2 slots * (features * sizeof(sum) + 8) bytes.
#pragma once

#include "anabranch/temporal/pair_encode.hpp"
#include "anabranch/temporal/pair_on_chip.cuh"

namespace anabranch::detail {

template <class T>
size_t encode_shared_bytes(int64_t slots, int64_t features) {
  const int64_t width = 2 * slots;
  return pair_shared_bytes(slots) + shared_bytes<accumulate_t<T>, int, int>(width * features, width, width);
}

/// A joined pair with its keys' codes and sums. kFeatures 0: any number.
template <class T, int kFeatures, PairActivation kActivation>
class EncodedPair {
 public:
  using Sum = accumulate_t<T>;

  __device__ EncodedPair(SharedMemory& shared, const PairEncode<T>& problem, int places)
      : problem_(problem),
        features_(kFeatures ? kFeatures : static_cast<int>(problem.sets.features)),
        join(shared, static_cast<int>(problem.sets.slots), places),
        z_(shared.take<Sum>(2 * problem.sets.slots * features_)),
        codes_(shared.take<int>(2 * problem.sets.slots)),
        order_(shared.take<int>(2 * problem.sets.slots)) {}

  __device__ void load(int64_t pair) {
    join.join(problem_.sets, pair);
    const int thread = static_cast<int>(threadIdx.x);
    for (int k = thread; k < join.count(); k += kPairThreads) codes_[k] = join.code(problem_.sets, k);
    for (int i = thread; i < join.count() * features_; i += kPairThreads) {
      z_[i] = join.z(problem_.sets, pair, i / features_, i % features_);
    }
    __syncthreads();
  }

  /// Orders the keys by code, equal codes by position.
  __device__ void group_by_code() {
    for (int k = static_cast<int>(threadIdx.x); k < join.count(); k += kPairThreads) {
      const int code = codes_[k];
      int rank = 0;
      for (int other = 0; other < join.count(); ++other) {
        const int its_code = codes_[other];
        rank += its_code < code || (its_code == code && other < k);
      }
      order_[rank] = k;
    }
    __syncthreads();
  }

  __device__ int code(int k) const { return codes_[k]; }
  __device__ int grouped(int rank) const { return order_[rank]; }
  __device__ Sum z(int k, int f) const { return z_[k * features_ + f]; }
  __device__ int features() const { return features_; }
  __device__ Sum weight(int64_t h, int f) const { return static_cast<Sum>(problem_.weight[h * features_ + f]); }
  __device__ Sum table(int code, int64_t h) const {
    return static_cast<Sum>(problem_.code_table[code * problem_.channels + h]);
  }

  /// The value before the activation.
  __device__ Sum value(int k, int64_t h, Sum table_value) const {
    Sum value = table_value;
#pragma unroll(kFeatures ? kFeatures : 1)
    for (int f = 0; f < features_; ++f) value += weight(h, f) * z(k, f);
    return value;
  }
  static constexpr int kept = kFeatures ? kFeatures : 1;
  static __device__ bool passes(Sum value) { return kActivation == PairActivation::none || !(value <= 0); }

 private:
  const PairEncode<T>& problem_;
  const int features_;

 public:
  PairOnChip join;

 private:
  SharedArray<Sum> z_;
  SharedArray<int> codes_, order_;
};

}  // namespace anabranch::detail
