// The expert FFN's backward on Hopper: gated by silu, 16-bit elements, sums in float.
//
// 1. hidden: d = dy[item] down[g], rows of dy gathered by cp.async, down N-major as it lies. Each thread turns its sums
//    into weight * hidden [capacity, intermediate], [dgate; dup] [capacity, 2, intermediate] and, per 64 features and
//    row, a part of the weight's gradient, added within a quad by a fixed tree. Columns from an expert's width on are
//    zeros, whatever the weights are there, so no later product has to know it for being right.
// 2. x: rows [capacity, in_features] = dgate gate[g] + dup up[g], both N-major, rounded to T; then combine.cuh by item.
// 3. down: sums over rows of dy[item]^T (weight * hidden). gate_up: [dgate; dup]^T x[item] (weight_gradient_sm90.cuh).
// 4. Gradients of routing weights and biases: the portable kernels (expert_ffn_backward.cuh).
//
// At most 9 launches; those of unwanted gradients are left out. FLOPs: 12 * entries * in * intermediate and 4 more for
// padded rows as in the forward. Bytes: the touched matrices read once and their gradients written once, per entry
// pre_activation, its gradient, weight * hidden and a row of x's width. Floor: as the forward's, twice.
#pragma once

#include "anabranch/experts/expert_ffn_backward.cuh"
#include "anabranch/experts/expert_ffn_sm90.cuh"
#include "anabranch/experts/weight_gradient_sm90.cuh"

namespace anabranch {

namespace detail {

template <class T, class Shape_>
struct HiddenGradientProblem {
  using Element = T;
  using Shape = Shape_;
  using Tile = RowsTile;
  static constexpr bool kAMnMajor = false, kBMnMajor = true, kThreadsLoad = true;
  static constexpr bool kBoxes = true;

  TensorMap down;  // [num_experts, out_features, intermediate], boxes of 64
  RowTiles tiles;
  const T* dy;
  const T* pre_activation;
  const int32_t* item_ids;  // of dy's rows
  const int32_t* widths;
  const float* weights;
  int64_t num_items, intermediate, out_features, capacity;
  bool shared;  // all groups have matrix 0
  ExpertFfnBackwardSm90Workspace<T> to;

  __device__ int column_tiles() const {
    return static_cast<int>((intermediate + Shape::kColumns - 1) / Shape::kColumns);
  }
  __device__ int64_t num_tiles() const { return scheduled_tiles(tiles) * column_tiles(); }
  __device__ Tile tile(int64_t index) const {
    Tile tile = rows_tile(tiles, index, column_tiles(), Shape::kColumns);
    tile.width = static_cast<int>(width_within(widths, tile.group, intermediate));
    tile.depth_blocks = tile.column < tile.width ? blocks_of_64(out_features) : 0;
    if (shared) tile.group = 0;
    return tile;
  }

  __device__ uint32_t box_bytes(const Tile&) const { return Shape::kBytesB; }
  __device__ void load_boxes(const Tile& tile, int block, SharedAddress, SharedAddress b, SharedAddress barrier) const {
#pragma unroll
    for (int c = 0; c < Shape::kColumns; c += 64)
      tma_load(b + c * 128, down, tile.column + c, block * 64, tile.group, barrier);
  }

  struct RowLoader {
    GatheredRows<T, Shape::kRows> rows;
    __device__ RowLoader(const HiddenGradientProblem& problem, const Tile& tile, int thread)
        : rows(problem.item_ids, problem.num_items, tile.begin, tile.rows, thread) {}
    __device__ void copy(const HiddenGradientProblem& problem, const Tile&, int block, SharedAddress a,
                         SharedAddress) const {
      rows.copy(problem.dy, problem.out_features, block * 64, a);
    }
  };

  struct Gradient {
    float dgate, dup, hidden;
  };
  /// Of one feature, d being the gradient of its unweighted hidden value.
  __device__ static Gradient feature_gradient(float d, float weight, float gate, float up) {
    const float sigmoid = fast_sigmoid(gate), value = gate * sigmoid;
    return {weight * d * up * sigmoid * (1.0f + gate * (1.0f - sigmoid)), weight * d * value, value * up};
  }

  /// What weights from the expert's width on gave may be NaN, and times zero would stay so. In every tile: behind a
  /// condition it costs registers that are not there.
  __device__ static void drop_columns(const Tile& tile, float (&sums)[Shape::kColumns / 2], int thread) {
    const int used = tile.width - tile.column - fragment_column(thread, 0);
#pragma unroll
    for (int reg = 0; reg < Shape::kColumns / 2; ++reg) sums[reg] = fragment_column(0, reg) < used ? sums[reg] : 0.0f;
  }

  __device__ void store(const Tile& tile, float (&sums)[Shape::kColumns / 2], int thread) const {
    drop_columns(tile, sums, thread);
    const int lane = thread % 32;
#pragma unroll
    for (int lower = 0; lower < 2; ++lower) {
      const int row = fragment_row(thread, 2 * lower);
      const bool row_exists = row < tile.rows;
      const int64_t entry = tile.begin + (row_exists ? row : 0);
      const float weight = weights && row_exists ? weights[entry] : 1.0f;
      float dot = 0.0f;
#pragma unroll
      for (int first = 0; first < Shape::kColumns / 8; first += 4) {
        const int64_t column = tile.column + 8 * (first + lane % 4);
        const int64_t gate_at = entry * 2 * intermediate + column, up_at = gate_at + intermediate;
        const bool exists = row_exists && column < intermediate;
        uint32_t gates[4] = {}, ups[4] = {}, products[4];
        if (exists && column < tile.width) {
          load_pairs(pre_activation + gate_at, gates);
          load_pairs(pre_activation + up_at, ups);
          if (column + 8 > tile.width) {  // what is read as zero gives zero
            keep_first(gates, tile.width - static_cast<int>(column));
            keep_first(ups, tile.width - static_cast<int>(column));
          }
        }
        quad_transpose(gates);
        quad_transpose(ups);
#pragma unroll
        for (int g = 0; g < 4; ++g) {
          const int reg = 4 * (first + g) + 2 * lower;
          const Pair gate = unpack_pair<T>(gates[g]), up = unpack_pair<T>(ups[g]);
          const Gradient left = feature_gradient(sums[reg], weight, gate.first, up.first);
          const Gradient right = feature_gradient(sums[reg + 1], weight, gate.second, up.second);
          dot += left.hidden * sums[reg] + right.hidden * sums[reg + 1];
          gates[g] = pack_pair<T>({left.dgate, right.dgate});
          ups[g] = pack_pair<T>({left.dup, right.dup});
          products[g] = pack_pair<T>({weight * left.hidden, weight * right.hidden});
        }
        quad_transpose(gates);
        quad_transpose(ups);
        quad_transpose(products);
        if (exists) {
          store_pairs(to.dpre_activation + gate_at, gates);
          store_pairs(to.dpre_activation + up_at, ups);
          if (to.weighted_hidden) store_pairs(to.weighted_hidden + entry * intermediate + column, products);
        }
        if (first % 8 == 4) {  // 64 features are complete
          dot += __shfl_xor_sync(kAllLanes, dot, 1);
          dot += __shfl_xor_sync(kAllLanes, dot, 2);
          const int64_t part = (tile.column + 8 * first) / 64;
          if (to.partial_dots && row_exists && lane % 4 == 0 && part * 64 < tile.width)
            to.partial_dots[part * capacity + entry] = dot;
          dot = 0.0f;
        }
      }
    }
  }
};

/// Weight gradients of the experts that are wanted, of the features in a range, which lies at multiples of 8.
template <class T>
void expert_weights_backward_sm90(const ExpertFfn<T>& ffn, int64_t capacity, const Upstream<T>& upstream,
                                  const ExpertFfnBackwardSm90Workspace<T>& workspace,
                                  const ExpertFfnGradients<T>& gradients, const FeatureRange& range,
                                  int multiprocessors, cudaStream_t stream) {
  const auto common = [&](auto problem) {
    problem.group_offsets = ffn.group_offsets;
    problem.frozen = gradients.frozen;
    problem.num_groups = ffn.num_experts;
    problem.capacity = capacity;
    return problem;
  };
  if (gradients.down.weight) {
    auto down = common(WeightGradientProblem<T, true>{});
    down.item_ids = upstream.ids;
    down.num_items = upstream.num_rows;
    down.a = upstream.dy;
    down.b = workspace.weighted_hidden + range.begin;
    down.m = down.a_stride = down.part_lines = ffn.out_features;
    down.n = range.size();
    down.b_stride = ffn.intermediate;
    down.out = gradients.down.weight + range.begin;
    down.group_stride = gradients.down.expert_stride;
    down.line_stride = gradients.down.out_stride;
    weight_gradient_sm90(down, multiprocessors, stream);
  }
  if (gradients.gate_up.weight) {
    const auto strides = HalfStrides::of(ffn, gradients.gate_up.out_stride);
    auto gate_up = common(WeightGradientProblem<T, false>{});
    gate_up.item_ids = ffn.item_ids;
    gate_up.num_items = ffn.num_items;
    gate_up.b = ffn.x;
    gate_up.n = gate_up.b_stride = ffn.in_features;
    gate_up.a_stride = 2 * ffn.intermediate;
    gate_up.group_stride = gradients.gate_up.expert_stride;
    gate_up.part_lines = ffn.intermediate;
    gate_up.part_stride = strides.half;
    gate_up.line_stride = strides.feature;
    // Both halves at once where they lie side by side, which they do whole.
    const bool whole = range.size() == ffn.intermediate;
    gate_up.m = whole ? 2 * ffn.intermediate : range.size();
    for (int part = 0; part < (whole ? 1 : 2); ++part) {
      gate_up.a = workspace.dpre_activation + part * ffn.intermediate + range.begin;
      gate_up.out = gradients.gate_up.weight + part * strides.half + range.begin * strides.feature;
      weight_gradient_sm90(gate_up, multiprocessors, stream);
    }
  }
  auto biases = gradients;  // of these the portable path makes the biases alone
  biases.down.weight = biases.gate_up.weight = nullptr;
  const ExpertFfnBackwardScratch<T> scratch{workspace.schedule, workspace.weighted_hidden, workspace.dpre_activation,
                                            workspace.partial_dots, nullptr};
  expert_weights_backward_cuda(ffn, capacity, upstream, scratch, biases, range, stream);
}

/// The gradients of the first product's output, and what the others need of the second's.
template <class T, class Shape>
void hidden_backward_sm90(const ExpertFfn<T>& ffn, const RowTiles& tiles, const Upstream<T>& upstream,
                          const T* pre_activation, const ExpertFfnBackwardSm90Workspace<T>& to, int multiprocessors,
                          cudaStream_t stream) {
  HiddenGradientProblem<T, Shape> hidden{};
  hidden.down = down_map(ffn, 64);
  hidden.tiles = tiles;
  hidden.dy = upstream.dy;
  hidden.pre_activation = pre_activation;
  hidden.item_ids = upstream.ids;
  hidden.widths = ffn.widths;
  hidden.weights = ffn.weights;
  hidden.num_items = upstream.num_rows;
  hidden.intermediate = ffn.intermediate;
  hidden.out_features = ffn.out_features;
  hidden.capacity = tiles.num_rows;
  hidden.shared = ffn.shared;
  hidden.to = to;
  launch_grouped_gemm_sm90(hidden, tiles.max_tiles * column_tiles<Shape::kColumns>(ffn.intermediate), multiprocessors,
                           stream);
}

/// The gradient of the rows that the first product read, by Problem: RowsProblem or one that stores otherwise, in
/// which the caller has set where.
template <class Problem, class T>
void input_backward_sm90(Problem input, const ExpertFfn<T>& ffn, const RowTiles& tiles, const T* dpre_activation,
                         int multiprocessors, cudaStream_t stream) {
  for (int part = 0; part < 2; ++part) {
    input.a[part] =
        entry_map<T>(dpre_activation + part * ffn.intermediate, tiles.num_rows, ffn.intermediate, 2 * ffn.intermediate);
    input.b[part] = gate_up_map(ffn, part, 64);
  }
  input.tiles = tiles;
  input.widths = ffn.widths;
  input.depth = ffn.intermediate;
  input.n = ffn.in_features;
  input.shared = ffn.shared;
  launch_grouped_gemm_sm90(input, tiles.max_tiles * column_tiles<Problem::Shape::kColumns>(ffn.in_features),
                           multiprocessors, stream);
}

template <class T, class Shape>
void expert_ffn_sm90_backward(const ExpertFfn<T>& ffn, int64_t capacity, const T* dy, const T* pre_activation,
                              const ExpertFfnBackwardSm90Workspace<T>& workspace,
                              const ExpertFfnGradients<T>& gradients, int multiprocessors, cudaStream_t stream) {
  const RowTiles tiles =
      row_tiles_cuda(ffn.group_offsets, ffn.num_experts, capacity, Shape::kRows, false, workspace.schedule, stream);
  const Upstream<T> upstream{dy, ffn.item_ids, ffn.num_items};
  hidden_backward_sm90<T, Shape>(ffn, tiles, upstream, pre_activation, workspace, multiprocessors, stream);
  if (gradients.x) {
    RowsProblem<T, Shape, 2, true> input{};
    input.out = workspace.rows;
    input_backward_sm90(input, ffn, tiles, workspace.dpre_activation, multiprocessors, stream);
    auto combine = expert_combine_of<T, T>(ffn, capacity);
    combine.rows = workspace.rows;
    combine.identity_rows = dy;
    combine.features = ffn.in_features;
    combine.out = gradients.x;
    expert_combine_cuda(combine, stream);
  }
  if (gradients.weights) {
    weights_backward_cuda(ffn, upstream, {workspace.partial_dots, capacity, capacity, 1.0f, gradients.weights, nullptr},
                          stream);
  }
  expert_weights_backward_sm90(ffn, capacity, upstream, workspace, gradients, {0, ffn.intermediate}, multiprocessors,
                               stream);
}

}  // namespace detail

template <class T>
void expert_ffn_backward_sm90(const ExpertFfn<T>& ffn, int64_t capacity, const T* dy, const T* pre_activation,
                              const ExpertFfnBackwardSm90Workspace<T>& workspace,
                              const ExpertFfnGradients<T>& gradients, int multiprocessors, cudaStream_t stream) {
  const auto run = choose_expert_ffn_sm90(capacity, ffn.num_experts).tile_rows == 64
                       ? detail::expert_ffn_sm90_backward<T, detail::Sm90Flat>
                       : detail::expert_ffn_sm90_backward<T, detail::Sm90Tall>;
  run(ffn, capacity, dy, pre_activation, workspace, gradients, multiprocessors, stream);
}

}  // namespace anabranch
