// Mixers of every kind, for the tests of matrices and of streams, and results that notice what is written beside them.
#pragma once

#include <array>

#include "anabranch/mixers/streams.hpp"
#include "cpu_kernels.hpp"

namespace anabranch::testing {

inline constexpr MixerKind mixer_kinds[] = {
    MixerKind::identity,         MixerKind::unconstrained,       MixerKind::sinkhorn,
    MixerKind::exact_sinkhorn,   MixerKind::permutation_mixture, MixerKind::cayley,
    MixerKind::truncated_cayley, MixerKind::grassmann,
};

/// As many permutations as streams, each another shift, every second one turned round; the last entry names no column.
inline const int32_t* some_permutations(int streams) {
  static const auto all = [] {
    std::array<std::vector<int32_t>, kMaxStreams + 1> out;
    for (int n = kMinStreams; n <= kMaxStreams; ++n) {
      for (int k = 0; k < n; ++k) {
        for (int i = 0; i < n; ++i) out[n].push_back((i * (k % 2 ? n - 1 : 1) + k) % n);
      }
      out[n].back() = 77;
    }
    return out;
  }();
  return all[streams].data();
}

inline Mixer mixer_of(MixerKind kind, int streams) {
  Mixer out;
  out.kind = kind;
  out.num_streams = streams;
  out.iterations = kind == MixerKind::truncated_cayley ? 2 : 6;
  out.rank = streams / 2;
  out.tolerance = 1e-9;
  out.scale = kind == MixerKind::truncated_cayley ? 0.2 : 1;
  if (kind != MixerKind::permutation_mixture) return out;
  out.permutations = some_permutations(streams);
  out.num_permutations = streams;
  return out;
}

/// `count` results between two zones that must stay as they are. They lie 64 bytes aligned, then `shift` further.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count, int64_t shift = 0) : count_(count), values_(count + shift + 3 * zone, T(untouched)) {
    while (reinterpret_cast<uintptr_t>(values_.data() + first_) % 64) ++first_;
    first_ += shift;
  }

  T* data() { return values_.data() + first_; }
  /// The results, after a look at what lies beside them.
  std::vector<T> written() const {
    const auto begin = values_.begin() + first_, end = begin + count_;
    expect(std::all_of(values_.begin(), begin, same) && std::all_of(end, values_.end(), same),
           "something was written beside a result");
    return {begin, end};
  }

 private:
  static constexpr float untouched = 0.40625f;  // in every dtype
  static constexpr int64_t zone = 64;
  static bool same(const T& value) { return static_cast<accumulate_t<T>>(value) == accumulate_t<T>(untouched); }

  int64_t count_, first_ = zone;
  std::vector<T> values_;
};

/// Results of several types as lists of one, each value as it is.
class Results {
 public:
  template <class T>
  Results& add(const Guarded<T>& result) {
    lists_.push_back(converted<double>(result.written()));
    return *this;
  }
  const std::vector<double>& operator[](size_t i) const { return lists_[i]; }
  size_t size() const { return lists_.size(); }

 private:
  std::vector<std::vector<double>> lists_;
};

}  // namespace anabranch::testing
