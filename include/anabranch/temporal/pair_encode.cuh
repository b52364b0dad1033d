// pair_encode (pair_encode.hpp defines it) on the GPU: a block of 128 threads joins a pair in shared memory
// (pair_join.cuh), takes the sums of z there too, and then each thread walks all keys for its channels.
//
// Forward, one launch: keys * channels * (2 features + 2) FLOPs a pair and 2 slots * (8 + features * sizeof(T)) bytes;
// 200 pairs of NAT's sets are 40 MFLOP, so the floor is the launch, then the latency of the join.
//
// Backward, three launches, no atomics on floats. The first has at most 128 blocks, each with sums of its own of the
// gradients of weight and table (in global memory, 4 * (features + 64) * channels bytes a block): it walks its pairs in
// order, and a thread adds to its own channels alone, keys grouped by code so that a row of the table is touched once a
// code. Then a warp for each key sums over channels what the key's z gets. The second adds up the blocks' sums in
// order; the third is pair_join's: a warp for each row walks the pairs. Blocks and orders depend on the data alone.
#pragma once

#include "anabranch/temporal/pair_encode_on_chip.cuh"
#include "anabranch/temporal/pair_join.cuh"

namespace anabranch {

/// Blocks of the backward, and so how many sets of sums it needs.
inline int64_t pair_encode_parts(int64_t pairs) { return std::min<int64_t>(pairs, 128); }

namespace detail {

template <class T, int kFeatures, PairActivation kActivation>
__global__ void __launch_bounds__(kPairThreads, 1) pair_encode_kernel(PairEncode<T> problem, int places, T* out) {
  using Sum = accumulate_t<T>;
  SharedMemory shared;
  EncodedPair<T, kFeatures, kActivation> pair(shared, problem, places);
  const int64_t p = blockIdx.x;
  pair.load(p);
  for (int64_t h = threadIdx.x; h < problem.channels; h += kPairThreads) {
    Sum sum = 0;
    for (int k = 0; k < pair.join.count(); ++k) {
      const Sum value = pair.value(k, h, pair.table(pair.code(k), h));
      sum += pair.passes(value) ? value : Sum(0);
    }
    out[p * problem.channels + h] = T(sum);
  }
}

/// Adds a pair's gradients of weight and table, for the channels of this thread, to sums [features + 64, channels].
template <class Pair, class Sum>
__device__ void add_parameter_gradients(const Pair& pair, int64_t channels, int64_t h, Sum upstream, Sum* sums) {
  const int features = pair.features();
  int code = -1;
  Sum table = 0, run = 0;
  Sum kept[Pair::kept] = {};  // of the weight, where the number of features is known
#pragma unroll 1
  for (int rank = 0; rank < pair.join.count(); ++rank) {
    const int k = pair.grouped(rank);
    if (pair.code(k) != code) {
      if (code >= 0) sums[(features + code) * channels + h] += run;
      code = pair.code(k), table = pair.table(code, h), run = 0;
    }
    if (!pair.passes(pair.value(k, h, table))) continue;
    run += upstream;
    if constexpr (Pair::kept > 1) {
#pragma unroll
      for (int f = 0; f < Pair::kept; ++f) kept[f] += upstream * pair.z(k, f);
    } else {
#pragma unroll 1
      for (int f = 0; f < features; ++f) sums[f * channels + h] += upstream * pair.z(k, f);
    }
  }
  if (code >= 0) sums[(features + code) * channels + h] += run;
  if constexpr (Pair::kept > 1) {
#pragma unroll
    for (int f = 0; f < Pair::kept; ++f) sums[f * channels + h] += kept[f];
  }
}

/// A warp for each key: dz_keys [count, features].
template <class T, class Pair, class Sum>
__device__ void write_key_gradients(const Pair& pair, int64_t channels, const T* dout, Sum* dz_keys) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  for (int k = static_cast<int>(threadIdx.x) / 32; k < pair.join.count(); k += kPairThreads / 32) {
    const int code = pair.code(k);
#pragma unroll 1
    for (int f = 0; f < pair.features(); ++f) {
      Sum sum = 0;
#pragma unroll 1
      for (int64_t h = lane; h < channels; h += 32) {
        if (pair.passes(pair.value(k, h, pair.table(code, h)))) sum += static_cast<Sum>(dout[h]) * pair.weight(h, f);
      }
      sum = warp_sum(sum);
      if (lane == 0) dz_keys[k * pair.features() + f] = sum;
    }
  }
}

template <class T, int kFeatures, PairActivation kActivation>
__global__ void __launch_bounds__(kPairThreads, 1)
    pair_encode_backward_kernel(PairEncode<T> problem, int places, const T* dout, bool with_dz, int32_t* positions,
                                accumulate_t<T>* dz_keys, accumulate_t<T>* parts) {
  using Sum = accumulate_t<T>;
  SharedMemory shared;
  EncodedPair<T, kFeatures, kActivation> pair(shared, problem, places);
  const int64_t width = 2 * problem.sets.slots, features = problem.sets.features, channels = problem.channels;
  Sum* sums = parts + blockIdx.x * (features + num_pair_codes) * channels;
  for (int64_t h = threadIdx.x; h < channels; h += kPairThreads) {
#pragma unroll 1
    for (int64_t row = 0; row < features + num_pair_codes; ++row) sums[row * channels + h] = 0;
  }
  for (int64_t p = blockIdx.x; p < problem.sets.pairs; p += gridDim.x) {
    pair.load(p);
    pair.group_by_code();
    for (int64_t h = threadIdx.x; h < channels; h += kPairThreads) {
      add_parameter_gradients(pair, channels, h, static_cast<Sum>(dout[p * channels + h]), sums);
    }
    if (with_dz) {
      for (int64_t i = threadIdx.x; i < width; i += kPairThreads) {
        positions[p * width + i] = pair.join.position(static_cast<int>(i));
      }
      write_key_gradients(pair, channels, dout + p * channels, dz_keys + p * width * features);
    }
    __syncthreads();
  }
}

/// A thread for each number of the parameters: the blocks' sums in order.
template <class T>
__global__ void __launch_bounds__(256)
    parameter_gradients_kernel(PairEncode<T> problem, int64_t num_parts, const accumulate_t<T>* parts, T* dweight,
                               T* dcode_table) {
  const int64_t features = problem.sets.features, channels = problem.channels;
  const int64_t numbers = (features + num_pair_codes) * channels;
  const int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (i >= numbers) return;
  accumulate_t<T> sum = 0;
#pragma unroll 8
  for (int64_t part = 0; part < num_parts; ++part) sum += parts[part * numbers + i];
  const int64_t row = i / channels, h = i % channels;
  if (row < features) {
    if (dweight) dweight[h * features + row] = T(sum);
  } else if (dcode_table) {
    dcode_table[(row - features) * channels + h] = T(sum);
  }
}

/// Calls f.template operator()<kFeatures, kActivation>().
template <class T, class F>
void dispatch_encode(const PairEncode<T>& problem, F&& f) {
  const auto with = [&]<int kFeatures>() {
    problem.activation == PairActivation::relu ? f.template operator()<kFeatures, PairActivation::relu>()
                                               : f.template operator()<kFeatures, PairActivation::none>();
  };
  problem.sets.features == 4 ? with.template operator()<4>() : with.template operator()<0>();
}

}  // namespace detail

/// pair_encode_reference, up to rounding. encode_shared_bytes is what the device must have.
template <class T>
void pair_encode_cuda(const PairEncode<T>& problem, T* out, cudaStream_t stream) {
  if (problem.sets.pairs * problem.channels == 0) return;
  detail::dispatch_encode(problem, [&]<int kFeatures, PairActivation kActivation>() {
    launch(detail::pair_encode_kernel<T, kFeatures, kActivation>, grid_of(problem.sets.pairs), detail::kPairThreads,
           detail::encode_shared_bytes<T>(problem.sets.slots, problem.sets.features), stream, problem,
           detail::pair_table_places(problem.sets.slots), out);
  });
}

/// Scratch of the backward: positions [pairs, 2 slots], dz_keys [pairs, 2 slots, features] (both for dz alone) and
/// parts [pair_encode_parts, features + 64, channels].
template <class T>
struct PairEncodeScratch {
  int32_t* positions;
  accumulate_t<T>*dz_keys, *parts;
};

/// pair_encode_backward_reference, up to rounding.
template <class T>
void pair_encode_backward_cuda(const PairEncode<T>& problem, const T* dout, T* dz, T* dweight, T* dcode_table,
                               const PairEncodeScratch<T>& scratch, cudaStream_t stream) {
  const SlotPairs<T>& sets = problem.sets;
  const int64_t parts = pair_encode_parts(sets.pairs), numbers = (sets.features + num_pair_codes) * problem.channels;
  if (parts > 0) {
    detail::dispatch_encode(problem, [&]<int kFeatures, PairActivation kActivation>() {
      launch(detail::pair_encode_backward_kernel<T, kFeatures, kActivation>, grid_of(parts), detail::kPairThreads,
             detail::encode_shared_bytes<T>(sets.slots, sets.features), stream, problem,
             detail::pair_table_places(sets.slots), dout, dz != nullptr, scratch.positions, scratch.dz_keys,
             scratch.parts);
    });
  }
  if (numbers > 0 && (dweight || dcode_table)) {
    launch(detail::parameter_gradients_kernel<T>, grid_of((numbers + 255) / 256), 256, 0, stream, problem, parts,
           scratch.parts, dweight, dcode_table);
  }
  if (dz) detail::slot_gradients_cuda<T>(sets, scratch.positions, scratch.dz_keys, dz, stream);
}

}  // namespace anabranch
