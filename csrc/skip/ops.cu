// The skip room's CUDA kernels in torch. Schemas are in ops.cpp and lowrank_ops.cpp; the host reads no value and waits
// for nothing, so choices that do not exist skip, and rows that run beyond the capacity skip too.
#include "anabranch/skip/gated_ffn_backward.cuh"
#include "anabranch/skip/lowrank_residual.cuh"
#include "cuda.hpp"
#include "skip/lowrank_checks.hpp"

namespace anabranch {
namespace {

/// [rows, columns], or nothing where it is not needed.
Tensor needed(bool is_needed, const Tensor& like, int64_t rows, int64_t columns, ScalarType type) {
  return is_needed ? empty_on(like, {rows, columns}, type) : empty_on(like, {0}, type);
}

/// Moments of rows as a tensor of two sums each.
template <class Sum>
RowMoments<Sum>* moments_of(const Tensor& tensor) {
  static_assert(sizeof(RowMoments<Sum>) == 2 * sizeof(Sum));
  return reinterpret_cast<RowMoments<Sum>*>(data_if_any<Sum>(tensor));
}

bool reads_norm(const GatedFfnArguments& in) { return in.norm_kind > 0; }

/// What the forward returns besides its pre-activations, which may be null.
struct GatedFfnResults {
  Tensor y, cosine, offsets, item_ids;

  GatedFfnResults(const GatedFfnArguments& in, bool with_cosine)
      : y(empty_on(in.x, {in.num_rows(), in.features()}, in.dtype())),
        cosine(empty_on(in.x, {with_cosine ? in.num_rows() : 0}, accumulate_type(in.dtype()))),
        offsets(empty_on(in.x, {in.num_groups() + 2}, ScalarType::Int)),
        item_ids(empty_on(in.x, {in.num_rows()}, ScalarType::Int)) {}
};

GatedFfnResults run_gated_ffn(const GatedFfnArguments& given, bool with_cosine,
                              const std::optional<Tensor>& pre_activation,
                              const std::optional<Tensor>& other_pre_activation) {
  const OnDeviceOf device(given.x);
  const GatedFfnArguments in = given.with_contiguous_rows();
  const GatedFfnResults out(in, with_cosine);
  dispatch_floating(in.dtype(), [&]<class T>(Type<T>) {
    using Sum = accumulate_t<T>;
    const GatedFfn<T> problem = in.problem<T>();
    const int64_t rows = in.num_rows(), capacity = in.capacity(), features = in.features();
    const ScalarType type = in.dtype(), sum_type = accumulate_type(type);
    const Tensor tables = empty_on(in.x, {gated_ffn_tables(problem.widths)}, ScalarType::Int);
    const Tensor scales = empty_on(in.x, {rows}, sum_type);
    const Tensor normed = needed(reads_norm(in), in.x, rows, features, type);
    const Tensor hidden = empty_on(in.x, {capacity, in.intermediate()}, type);
    const Tensor other_hidden = needed(in.other_down.has_value(), in.x, rows, in.other_intermediate(), type);
    const Tensor dots = empty_on(in.x, {with_cosine ? gated_ffn_dots(features, capacity) : 0}, sum_type);
    gated_ffn_cuda<T>(problem, capacity,
                      {mutable_data<int32_t>(tables), mutable_data<Sum>(scales), data_if_any<T>(normed),
                       data_if_any<T>(hidden), data_if_any<T>(other_hidden), data_if_any<Sum>(dots)},
                      {mutable_data<int32_t>(out.offsets), mutable_data<int32_t>(out.item_ids)}, mutable_data<T>(out.y),
                      data_if_any<Sum>(out.cosine), pre_activation ? data_if_any<T>(*pre_activation) : nullptr,
                      other_pre_activation ? data_if_any<T>(*other_pre_activation) : nullptr, hopper_multiprocessors(),
                      device.stream);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> gated_ffn(ANABRANCH_GATED_FFN_PARAMETERS, bool cosine) {
  const GatedFfnArguments in ANABRANCH_GATED_FFN_ARGUMENTS;
  in.check_all("gated_ffn");
  const Tensor pre_activation = empty_on(x, {in.capacity(), in.num_parts() * in.intermediate()}, in.dtype());
  const Tensor other_pre_activation =
      empty_on(x, {in.other_down ? in.num_rows() : 0, in.other_parts() * in.other_intermediate()}, in.dtype());
  const GatedFfnResults out = run_gated_ffn(in, cosine, pre_activation, other_pre_activation);
  return {out.y, out.cosine, out.offsets, out.item_ids, pre_activation, other_pre_activation};
}

std::tuple<Tensor, Tensor, Tensor> gated_ffn_inference(ANABRANCH_GATED_FFN_PARAMETERS, bool cosine) {
  const GatedFfnArguments in ANABRANCH_GATED_FFN_ARGUMENTS;
  in.check_all("gated_ffn");
  const GatedFfnResults out = run_gated_ffn(in, cosine, std::nullopt, std::nullopt);
  return {out.y, out.cosine, out.offsets};
}

GatedFfnGradientTensors::Tuple gated_ffn_backward(const Tensor& dy_in, const Tensor& row_offsets,
                                                  const Tensor& item_ids, const Tensor& pre_activation_in,
                                                  const Tensor& other_pre_activation_in, ANABRANCH_GATED_FFN_PARAMETERS,
                                                  int64_t wanted) {
  constexpr const char* op = "gated_ffn_backward";
  const GatedFfnArguments given ANABRANCH_GATED_FFN_ARGUMENTS;
  given.check_all(op);
  check_gated_ffn_backward(op, given, dy_in, row_offsets, item_ids, pre_activation_in, other_pre_activation_in);
  const OnDeviceOf device(x);
  const GatedFfnArguments in = given.with_contiguous_rows();
  const Tensor dy = as_contiguous(dy_in), pre_activation = as_contiguous(pre_activation_in);
  const Tensor other_pre_activation = as_contiguous(other_pre_activation_in);
  const GatedFfnGradientTensors results(in, wanted);
  const int64_t rows = in.num_rows(), room = in.capacity(), features = in.features(), inner = in.intermediate();
  const ScalarType type = in.dtype(), sum_type = accumulate_type(type);
  const auto wants = [&](int bit) { return (wanted >> bit & 1) != 0; };
  const bool norm_weights = wants(wants_norm_weight) || wants(wants_norm_bias), has_other = in.other_down.has_value();
  const Tensor groups_offsets = empty_on(x, {in.num_groups() + 2}, ScalarType::Int);
  const Tensor groups_items = empty_on(x, {rows}, ScalarType::Int);
  const Tensor scales = empty_on(x, {rows}, sum_type);
  const Tensor normed = needed(reads_norm(in), x, rows, features, type);
  const Tensor weighted_hidden = needed(wants(wants_ffn_down), x, room, inner, type);
  const Tensor dpre_activation = needed(true, x, room, in.num_parts() * inner, type);
  const Tensor other_weighted_hidden = needed(wants(wants_other_down), x, rows, in.other_intermediate(), type);
  const Tensor other_dpre_activation = needed(has_other, x, rows, in.other_parts() * in.other_intermediate(), type);
  const Tensor partial_dots = needed(wants(wants_ffn_gate), x, expert_ffn_dot_parts(inner), room, sum_type);
  const Tensor dnormed = needed(reads_norm(in) && (wants(wants_ffn_x) || norm_weights), x, rows, features, type);
  const Tensor moments = needed(norm_weights, x, rows, 2, sum_type);
  const Tensor parts = needed(norm_weights, x, norm_parts(rows, features), 1, sum_type);
  dispatch_floating(type, [&]<class T>(Type<T>) {
    using Sum = accumulate_t<T>;
    const GatedFfn<T> problem = in.problem<T>();
    const Tensor tables = empty_on(x, {gated_ffn_tables(problem.widths)}, ScalarType::Int);
    const GatedFfnBackwardScratch<T> scratch{
        {mutable_data<int32_t>(groups_offsets), mutable_data<int32_t>(groups_items)},
        mutable_data<int32_t>(tables),
        mutable_data<Sum>(scales),
        data_if_any<T>(normed),
        data_if_any<T>(weighted_hidden),
        data_if_any<T>(dpre_activation),
        data_if_any<T>(other_weighted_hidden),
        data_if_any<T>(other_dpre_activation),
        data_if_any<Sum>(partial_dots),
        data_if_any<T>(dnormed),
        moments_of<Sum>(moments),
        data_if_any<Sum>(parts)};
    gated_ffn_backward_cuda<T>(problem, room, data<T>(dy), data<T>(pre_activation), data<T>(other_pre_activation),
                               scratch, results.pointers<T>(), hopper_multiprocessors(), device.stream);
  });
  return results.tuple();
}

Tensor run_lowrank_residual(const LowRankArguments& given, const std::optional<Tensor>& pre_activation) {
  given.check_all("lowrank_residual");
  const OnDeviceOf device(given.x);
  const LowRankArguments in = given.with_contiguous_rows();
  const int64_t rows = in.num_groups() * in.rows_per_group();
  const Tensor y = empty_on(in.x, {in.num_groups(), in.rows_per_group(), in.features()}, in.dtype());
  const Tensor tables = empty_on(in.x, {lowrank_tables(in.num_groups())}, ScalarType::Int);
  const Tensor normed = needed(in.norm_kind > 0, in.x, rows, in.features(), in.dtype());
  const Tensor hidden = empty_on(in.x, {rows, in.rank()}, in.dtype());
  dispatch_floating(in.dtype(), [&]<class T>(Type<T>) {
    LowRankScratch<T> scratch{};
    scratch.tables = mutable_data<int32_t>(tables);
    scratch.normed = data_if_any<T>(normed);
    scratch.hidden = data_if_any<T>(hidden);
    lowrank_residual_cuda<T>(in.problem<T>(), scratch, mutable_data<T>(y),
                             pre_activation ? data_if_any<T>(*pre_activation) : nullptr, device.stream);
  });
  return y;
}

std::tuple<Tensor, Tensor> lowrank_residual(ANABRANCH_LOWRANK_PARAMETERS) {
  const LowRankArguments in ANABRANCH_LOWRANK_ARGUMENTS;
  in.check_all("lowrank_residual");
  const Tensor pre_activation = empty_on(x, {in.num_groups() * in.rows_per_group(), in.rank()}, in.dtype());
  return {run_lowrank_residual(in, pre_activation), pre_activation};
}

Tensor lowrank_residual_inference(ANABRANCH_LOWRANK_PARAMETERS) {
  return run_lowrank_residual(ANABRANCH_LOWRANK_ARGUMENTS, std::nullopt);
}

LowRankGradientTensors::Tuple lowrank_residual_backward(const Tensor& dy_in, const Tensor& pre_activation_in,
                                                        ANABRANCH_LOWRANK_PARAMETERS, int64_t wanted) {
  constexpr const char* op = "lowrank_residual_backward";
  const LowRankArguments given ANABRANCH_LOWRANK_ARGUMENTS;
  given.check_all(op);
  check_lowrank_backward(op, given, dy_in, pre_activation_in);
  const OnDeviceOf device(x);
  const LowRankArguments in = given.with_contiguous_rows();
  const Tensor dy = as_contiguous(dy_in), pre_activation = as_contiguous(pre_activation_in);
  const LowRankGradientTensors results(in, wanted);
  const int64_t rows = in.num_groups() * in.rows_per_group(), features = in.features();
  const ScalarType type = in.dtype(), sum_type = accumulate_type(type);
  const bool normed = in.norm_kind > 0, norm_weights = (wanted >> 3 & 3) != 0;
  const Tensor tables = empty_on(x, {lowrank_tables(in.num_groups())}, ScalarType::Int);
  const Tensor normed_rows = needed(normed, x, rows, features, type);
  const Tensor hidden = empty_on(x, {rows, in.rank()}, type), dpre_activation = empty_on(x, {rows, in.rank()}, type);
  const Tensor scales = empty_on(x, {rows}, sum_type);
  const Tensor dnormed = needed(normed && (wanted & 1 || norm_weights), x, rows, features, type);
  const Tensor moments = needed(norm_weights, x, rows, 2, sum_type);
  const Tensor parts = needed(norm_weights, x, norm_parts(rows, features), 1, sum_type);
  dispatch_floating(type, [&]<class T>(Type<T>) {
    using Sum = accumulate_t<T>;
    const LowRankScratch<T> scratch{mutable_data<int32_t>(tables), data_if_any<T>(normed_rows),
                                    data_if_any<T>(hidden),        data_if_any<T>(dpre_activation),
                                    data_if_any<Sum>(scales),      data_if_any<T>(dnormed),
                                    moments_of<Sum>(moments),      data_if_any<Sum>(parts)};
    lowrank_residual_backward_cuda<T>(in.problem<T>(), data<T>(dy), data<T>(pre_activation), scratch,
                                      results.pointers<T>(), device.stream);
  });
  return results.tuple();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) {
  m.impl("gated_ffn", TORCH_BOX(&gated_ffn));
  m.impl("gated_ffn_inference", TORCH_BOX(&gated_ffn_inference));
  m.impl("gated_ffn_backward", TORCH_BOX(&gated_ffn_backward));
  m.impl("lowrank_residual", TORCH_BOX(&lowrank_residual));
  m.impl("lowrank_residual_inference", TORCH_BOX(&lowrank_residual_inference));
  m.impl("lowrank_residual_backward", TORCH_BOX(&lowrank_residual_backward));
}

}  // namespace anabranch
