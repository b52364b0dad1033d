// The experts room's CUDA kernels in torch. Schemas are in ops.cpp; the host reads no value and waits for nothing.
#include "anabranch/experts/expert_ffn_backward.cuh"
#include "anabranch/experts/expert_ffn_sm90.hpp"
#include "anabranch/experts/grouped_mm.cuh"
#include "cuda.hpp"
#include "experts/checks.hpp"

namespace anabranch {
namespace {

Tensor schedule_scratch(const Tensor& like, int64_t num_groups) {
  return empty_on(like, {row_tiles_scratch(num_groups)}, ScalarType::Int);
}

template <class T>
T* data_or_null(const Tensor& tensor) {
  return tensor.numel() > 0 ? mutable_data<T>(tensor) : nullptr;
}

bool is_aligned(const Tensor& tensor) { return reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0; }

/// True if it ran: on Hopper, for the problems that its kernels take.
template <class T>
bool expert_ffn_on_hopper(const ExpertFfnArguments& in, const Tensor& schedule, const Tensor& y, T* pre_activation,
                          cudaStream_t stream) {
  if constexpr (detail::is_16_bit<T>) {
    const ExpertFfn<T> ffn = in.problem<T>();
    const int multiprocessors = hopper_multiprocessors();
    if (multiprocessors == 0 || !expert_ffn_sm90_takes(ffn, in.capacity())) return false;
    const bool copies = choose_expert_ffn_sm90(in.capacity(), in.num_experts()).gather == GatherKind::copy;
    const Tensor hidden = empty_on(in.x, {in.capacity(), in.intermediate()}, in.dtype());
    const Tensor rows = empty_on(in.x, {in.capacity(), in.out_features()}, in.dtype());
    const Tensor x = empty_on(in.x, {copies ? in.capacity() : 0, in.in_features()}, in.dtype());
    expert_ffn_sm90<T>(
        ffn, in.capacity(),
        {mutable_data<int32_t>(schedule), mutable_data<T>(hidden), mutable_data<T>(rows), data_or_null<T>(x)},
        mutable_data<T>(y), pre_activation, multiprocessors, stream);
    return true;
  }
  return false;
}

Tensor run_expert_ffn(const ExpertFfnArguments& given, const std::optional<Tensor>& pre_activation) {
  const OnDeviceOf device(given.x);
  const ExpertFfnArguments in = given.with_contiguous_rows();
  const Tensor y = empty_on(in.x, {in.num_items(), in.out_features()}, in.dtype());
  const Tensor schedule = schedule_scratch(in.x, in.num_experts());
  dispatch_floating(in.dtype(), [&]<class T>(Type<T>) {
    T* const saved = pre_activation ? mutable_data<T>(*pre_activation) : nullptr;
    if (expert_ffn_on_hopper<T>(in, schedule, y, saved, device.stream)) return;
    const Tensor hidden = empty_on(in.x, {in.capacity(), in.intermediate()}, in.dtype());
    const Tensor sums = empty_on(in.x, {in.capacity(), in.out_features()}, accumulate_type(in.dtype()));
    const ExpertFfnScratch<T> scratch{mutable_data<int32_t>(schedule), mutable_data<T>(hidden),
                                      mutable_data<accumulate_t<T>>(sums)};
    expert_ffn_cuda(in.problem<T>(), in.capacity(), scratch, mutable_data<T>(y), saved, device.stream);
  });
  return y;
}

std::tuple<Tensor, Tensor> expert_ffn(ANABRANCH_EXPERT_FFN_PARAMETERS) {
  const ExpertFfnArguments in ANABRANCH_EXPERT_FFN_ARGUMENTS;
  in.check_all("expert_ffn");
  const Tensor pre_activation = empty_on(x, {in.capacity(), in.num_parts() * in.intermediate()}, in.dtype());
  return {run_expert_ffn(in, pre_activation), pre_activation};
}

Tensor expert_ffn_inference(ANABRANCH_EXPERT_FFN_PARAMETERS) {
  const ExpertFfnArguments in ANABRANCH_EXPERT_FFN_ARGUMENTS;
  in.check_all("expert_ffn");
  return run_expert_ffn(in, std::nullopt);
}

ExpertFfnGradientTensors::Tuple expert_ffn_backward(const Tensor& dy_in, const Tensor& pre_activation_in,
                                                    ANABRANCH_EXPERT_FFN_PARAMETERS, int64_t wanted) {
  constexpr const char* op = "expert_ffn_backward";
  const ExpertFfnArguments given ANABRANCH_EXPERT_FFN_ARGUMENTS;
  given.check_all(op);
  check_expert_ffn_backward(op, given, dy_in, pre_activation_in);
  const OnDeviceOf device(x);
  const ExpertFfnArguments in = given.with_contiguous_rows();
  const Tensor dy = as_contiguous(dy_in), pre_activation = as_contiguous(pre_activation_in);
  const ExpertFfnGradientTensors results(in, wanted);
  const int64_t capacity = in.capacity(), inner = in.intermediate();
  const ScalarType sum_type = accumulate_type(in.dtype());
  const auto needed = [&](bool is_needed, int64_t rows, int64_t columns, ScalarType type) {
    return is_needed ? empty_on(x, {rows, columns}, type) : empty_on(x, {0}, type);
  };
  const bool dots = results.wants(wants_weights), dx = results.wants(wants_x), ddown = results.wants(wants_down);
  const Tensor schedule = schedule_scratch(x, in.num_experts());
  const Tensor weighted_hidden = needed(ddown, capacity, inner, in.dtype());
  const Tensor dpre_activation = needed(true, capacity, in.num_parts() * inner, in.dtype());
  const Tensor partial_dots = needed(dots, expert_ffn_dot_parts(inner), capacity, sum_type);
  dispatch_floating(in.dtype(), [&]<class T>(Type<T>) {
    using Sum = accumulate_t<T>;
    const ExpertFfnGradients<T> gradients = results.pointers<T>(in);
    if constexpr (detail::is_16_bit<T>) {
      const ExpertFfn<T> ffn = in.problem<T>();
      const int multiprocessors = hopper_multiprocessors();
      if (multiprocessors > 0 && expert_ffn_sm90_takes(ffn, capacity) && expert_ffn_sm90_writes(gradients) &&
          is_aligned(dy) && is_aligned(pre_activation)) {
        const Tensor rows = needed(dx, capacity, in.in_features(), in.dtype());
        expert_ffn_backward_sm90<T>(
            ffn, capacity, data<T>(dy), data<T>(pre_activation),
            {mutable_data<int32_t>(schedule), data_or_null<T>(weighted_hidden), mutable_data<T>(dpre_activation),
             data_or_null<float>(partial_dots), data_or_null<T>(rows)},
            gradients, multiprocessors, device.stream);
        return;
      }
    }
    const Tensor sums = needed(dx, capacity, in.in_features(), sum_type);
    const ExpertFfnBackwardScratch<T> scratch{
        mutable_data<int32_t>(schedule), ddown ? mutable_data<T>(weighted_hidden) : nullptr,
        mutable_data<T>(dpre_activation), dots ? mutable_data<Sum>(partial_dots) : nullptr,
        dx ? mutable_data<Sum>(sums) : nullptr};
    expert_ffn_backward_cuda(in.problem<T>(), capacity, data<T>(dy), data<T>(pre_activation), scratch, gradients,
                             device.stream);
  });
  return results.tuple();
}

Tensor grouped_mm(const Tensor& x, const Tensor& w, const Tensor& offsets, const std::optional<Tensor>& bias_in) {
  check_grouped_mm("grouped_mm", x, w, offsets, bias_in);
  const OnDeviceOf device(x);
  const auto bias = as_contiguous(bias_in);
  const Tensor out = empty_on(x, {x.size(0), w.size(2)}, x.scalar_type());
  const Tensor scratch = schedule_scratch(x, w.size(0));
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    const GroupedMm<T> problem{strided_matrix<T>(x),
                               strided_matrix<T>(w),
                               w.stride(0),
                               data<T>(bias),
                               data<int32_t>(offsets),
                               w.size(0),
                               x.size(0),
                               x.size(1),
                               w.size(2),
                               mutable_data<T>(out)};
    if constexpr (detail::is_16_bit<T>) {
      if (const int multiprocessors = hopper_multiprocessors(); multiprocessors > 0 && grouped_mm_sm90_takes(problem))
        return grouped_mm_sm90(problem, mutable_data<int32_t>(scratch), multiprocessors, device.stream);
    }
    grouped_mm_cuda(problem, mutable_data<int32_t>(scratch), device.stream);
  });
  return out;
}

Tensor grouped_mm_dw(const Tensor& x, const Tensor& dy, const Tensor& offsets) {
  check_grouped_mm_dw("grouped_mm_dw", x, dy, offsets);
  const OnDeviceOf device(x);
  const int64_t num_groups = offsets.size(0) - 1;
  const Tensor dw = empty_on(x, {num_groups, x.size(1), dy.size(1)}, x.scalar_type());
  dispatch_floating(x.scalar_type(), [&]<class T>(Type<T>) {
    const GroupedMmDw<T> problem{
        strided_matrix<T>(x), strided_matrix<T>(dy), data<int32_t>(offsets), num_groups, x.size(1),
        dy.size(1),           mutable_data<T>(dw)};
    if constexpr (detail::is_16_bit<T>) {
      const int multiprocessors = hopper_multiprocessors();
      if (multiprocessors > 0 && grouped_mm_dw_sm90_takes(problem))
        return grouped_mm_dw_sm90(problem, x.size(0), multiprocessors, device.stream);
    }
    grouped_mm_dw_cuda(problem, x.size(0), device.stream);
  });
  return dw;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) {
  m.impl("grouped_mm", TORCH_BOX(&grouped_mm));
  m.impl("grouped_mm_dw", TORCH_BOX(&grouped_mm_dw));
  m.impl("expert_ffn", TORCH_BOX(&expert_ffn));
  m.impl("expert_ffn_inference", TORCH_BOX(&expert_ffn_inference));
  m.impl("expert_ffn_backward", TORCH_BOX(&expert_ffn_backward));
}

}  // namespace anabranch
