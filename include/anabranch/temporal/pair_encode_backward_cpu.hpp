// The backward of pair_encode on the CPU: pair_encode_cpu.hpp says how.
#pragma once

#include "anabranch/temporal/pair_encode_cpu.hpp"

namespace anabranch {

namespace detail {

inline constexpr int64_t encode_tile = 64;  // pairs; pair_chunk / encode_tile sets of sums of parameters' gradients

/// The last pass of the linear backward: every slot with a key gets its row's gradient [rows, features].
template <class T>
void spread_row_gradients(const SlotPairs<T>& sets, const accumulate_t<T>* gradients, T* dz) {
  parallel_for(sets.rows, std::max<int64_t>(1, 32768 / std::max<int64_t>(1, sets.slots * (sets.features + 1))),
               [&](int64_t begin, int64_t end) {
                 with_features(sets.features, [&](auto features) {
                   for (int64_t row = begin; row < end; ++row) {
                     const accumulate_t<T>* from = gradients + row * features;
                     for (int64_t slot = row * sets.slots; slot < (row + 1) * sets.slots; ++slot) {
                       const bool used = sets.keys[slot] >= 0;
                       for (int64_t f = 0; f < features; ++f) dz[slot * features + f] = T(used ? from[f] : 0);
                     }
                   }
                 });
               });
}

/// Adds each pair's [features] numbers to its two rows, in the order of the pairs.
template <class T>
void add_to_rows(const SlotPairs<T>& sets, int64_t begin, int64_t end, const accumulate_t<T>* from,
                 accumulate_t<T>* sums) {
  for (int64_t p = begin; p < end; ++p, from += sets.features) {
    for (int side = 0; side < 2; ++side) {
      const int64_t row = sets.row(p, side);
      for (int64_t f = 0; f < sets.features && row >= 0; ++f) sums[row * sets.features + f] += from[f];
    }
  }
}

/// Rounds the sums of the parameters' gradients, summed over tiles in order.
template <class T>
void finish_parameters(const PairEncode<T>& problem, int64_t padded, int64_t tiles, const accumulate_t<T>* sums,
                       T* dweight, T* dcode_table) {
  using Sum = accumulate_t<T>;
  const int64_t features = problem.sets.features, numbers = (features + num_pair_codes) * padded;
  parallel_for(features + num_pair_codes, std::max<int64_t>(1, 65536 / (tiles * padded + 1)),
               [&](int64_t begin, int64_t end) {
                 const Temporary<Sum> total(padded);
                 for (int64_t row = begin; row < end; ++row) {
                   std::fill_n(total.data(), padded, Sum(0));
                   for (int64_t tile = 0; tile < tiles; ++tile) {
                     const Sum* from = sums + tile * numbers + row * padded;
                     for (int64_t h = 0; h < padded; ++h) total.data()[h] += from[h];
                   }
                   T* to = row < features ? dweight : dcode_table;
                   if (!to) continue;
                   const int64_t stride = row < features ? features : 1;
                   to += row < features ? row : (row - features) * problem.channels;
                   for (int64_t h = 0; h < problem.channels; ++h) to[h * stride] = T(total.data()[h]);
                 }
               });
}

}  // namespace detail

/// pair_encode_backward_reference, up to rounding.
template <class T>
void pair_encode_backward_cpu(const PairEncode<T>& problem, const T* dout, T* dz, T* dweight, T* dcode_table) {
  using Sum = accumulate_t<T>;
  const SlotPairs<T>& sets = problem.sets;
  const bool relu = problem.activation == PairActivation::relu;
  const int64_t chunk = std::min(sets.pairs, detail::pair_chunk), width = 2 * sets.slots;
  const auto kernels = pair_encode_kernels<Sum>();
  const detail::PackedEncodeRows<T> packed(problem);
  const EncodeRows<Sum> rows = packed.rows();
  const int64_t tiles = (chunk + detail::encode_tile - 1) / detail::encode_tile;
  const Temporary<Sum> parameter_sums(tiles * packed.numbers());
  const Temporary<int16_t> positions(relu ? chunk * width : 0);
  const Temporary<Sum> gradients(chunk * (relu ? width : 1) * sets.features);
  const Temporary<Sum> row_sums(relu ? 0 : sets.rows * sets.features);
  if (!relu) std::fill_n(row_sums.data(), sets.rows * sets.features, Sum(0));
  // Without an activation, and where dz is not wanted, this stays empty.
  SlotPairs<T> slots = sets;
  if (!relu || !dz) slots.rows = 0;
  const detail::SlotGradients<T> slot_gradients(slots, dz);

  for (int64_t first = 0; first < sets.pairs; first += chunk) {
    const int64_t last = std::min(first + chunk, sets.pairs);
    const int workers = workers_for(last - first, detail::encode_grain(problem));
    parallel_tiles((last - first + detail::encode_tile - 1) / detail::encode_tile, workers, [&](int64_t tile, int) {
      detail::EncodeScratch<T> scratch(problem, rows.padded);
      Sum* sums = parameter_sums.data() + tile * packed.numbers();
      if (first == 0) std::fill_n(sums, packed.numbers(), Sum(0));
      const int64_t end = std::min(first + (tile + 1) * detail::encode_tile, last);
      for (int64_t p = first + tile * detail::encode_tile; p < end; ++p) {
        for (int64_t h = 0; h < problem.channels; ++h) {
          scratch.row.data()[h] = static_cast<Sum>(dout[p * problem.channels + h]);
        }
        if (relu) {
          scratch.join.join(sets, p, positions.data() + (p - first) * width, scratch.z.data());
          kernels.relu_backward(rows, scratch.join.count(), scratch.z.data(), scratch.join.codes(), scratch.row.data(),
                                scratch.partial.data(), gradients.data() + (p - first) * width * sets.features, sums);
        } else {
          scratch.join.join(sets, p, scratch.positions.data());
          kernels.linear_backward(rows, scratch.count(sets, p), scratch.row.data(),
                                  gradients.data() + (p - first) * sets.features, sums);
        }
      }
    });
    if (!dz) continue;
    if (relu) {
      slot_gradients.add(sets, first, last, positions.data(), gradients.data());
    } else {
      detail::add_to_rows(sets, first, last, gradients.data(), row_sums.data());
    }
  }
  if (dz) relu ? slot_gradients.finish() : detail::spread_row_gradients(sets, row_sums.data(), dz);
  detail::finish_parameters(problem, rows.padded, tiles, parameter_sums.data(), dweight, dcode_table);
}

}  // namespace anabranch
