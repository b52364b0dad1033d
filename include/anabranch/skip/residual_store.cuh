// Where rows of a branch end: scaled, added to their residual and stored by item; and the cosine of what goes in and
// comes out. Sums stay in accumulate_t<T> until they are stored, and every row of y is written by one block.
#pragma once

#include "anabranch/core/vector.cuh"

namespace anabranch::detail {

/// y[item] = x[item] + base[item] + scale * sum, x only if adds_x (else it is there for the dots). A store of
/// GroupedRows (grouped_gemm.cuh), and of the Hopper rows.
template <class T>
struct ResidualStore {
  using Sum = accumulate_t<T>;

  const T *x, *base;        // [num_items, n], or null for 0
  const int32_t* item_ids;  // of entries, or null: entry e is item e
  const Sum* scales;        // by entry, or null for `scale`
  Sum scale;
  bool adds_x;
  T* y;
  Sum* dots;  // [column tiles, 3, num_entries]: parts of <x, x>, <x, y>, <y, y>; or null
  int64_t num_entries;

  __device__ int64_t item(int64_t entry) const { return item_ids ? item_ids[entry] : entry; }
  __device__ Sum scale_of(int64_t entry) const { return scales ? scales[entry] : scale; }
  __device__ void store_dots(int64_t tile, int64_t entry, Sum xx, Sum xy, Sum yy) const {
    Sum* to = dots + tile * 3 * num_entries + entry;
    to[0] = xx;
    to[num_entries] = xy;
    to[2 * num_entries] = yy;
  }

  /// By the lanes of a warp: columns first .. first + columns of an entry's row.
  template <class Value>
  __device__ void operator()(int64_t entry, int64_t n, int64_t first, int columns, int lane, Value&& value) const {
    const int64_t at = item(entry) * n + first;
    const Sum factor = scale_of(entry);
    Sum xx = 0, xy = 0, yy = 0;
    for (int column = lane; column < columns; column += 32) {
      const Sum from = x ? static_cast<Sum>(x[at + column]) : Sum(0);
      const Sum other = base ? static_cast<Sum>(base[at + column]) : Sum(0);
      const T stored = T((adds_x ? from : Sum(0)) + other + factor * value(column));
      y[at + column] = stored;
      const Sum to = static_cast<Sum>(stored);
      xx += from * from, xy += from * to, yy += to * to;
    }
    if (!dots) return;
    xx = warp_sum(xx), xy = warp_sum(xy), yy = warp_sum(yy);
    if (lane == 0) store_dots(first / 64, entry, xx, xy, yy);
  }
};

/// cosine[item] of every entry below num_running, a warp each: the parts are added in one order.
template <class T>
__global__ void __launch_bounds__(256)
    cosine_kernel(ResidualStore<T> rows, int64_t num_parts, const int32_t* num_running, accumulate_t<T>* cosine) {
  using Sum = accumulate_t<T>;
  using std::sqrt;
  const int64_t entry = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  const int lane = static_cast<int>(threadIdx.x);
  if (entry >= *num_running) return;
  Sum xx = 0, xy = 0, yy = 0;
  for (int64_t part = lane; part < num_parts; part += 32) {
    const Sum* from = rows.dots + part * 3 * rows.num_entries + entry;
    xx += from[0], xy += from[rows.num_entries], yy += from[2 * rows.num_entries];
  }
  xx = warp_sum(xx), xy = warp_sum(xy), yy = warp_sum(yy);
  const Sum norms = sqrt(xx) * sqrt(yy);
  if (lane == 0) cosine[rows.item(entry)] = norms == 0 ? norms : xy / norms;
}

template <class T>
void cosine_cuda(const ResidualStore<T>& rows, int64_t num_parts, const int32_t* num_running, accumulate_t<T>* cosine,
                 cudaStream_t stream) {
  if (rows.num_entries == 0) return;
  const dim3 block(32, 8);
  launch(cosine_kernel<T>, row_grid(rows.num_entries, block), block, 0, stream, rows, num_parts, num_running, cosine);
}

}  // namespace anabranch::detail
