// The CUDA kernels of joins of slot sets in torch. Schemas are in pair_ops.cpp.
#include "anabranch/temporal/pair_encode.cuh"
#include "cuda.hpp"
#include "temporal/pair_checks.hpp"

namespace anabranch {
namespace {

/// A block keeps a pair in shared memory; how much of that there is, the device says.
void check_fits(const char* op, const SlotPairArguments& in, size_t needed) {
  const int64_t limit = shared_memory_limit();
  check(static_cast<int64_t>(needed) <= limit, op, ": z has shape ", shape_string(in.z), ", a pair of which takes ",
        needed, " bytes of shared memory, must be at most ", limit, " on this GPU; use fewer slots or features");
}

void check_encode_fits(const char* op, const PairEncodeArguments& in) {
  dispatch_floating(in.z.scalar_type(), [&]<class T>(Type<T>) {
    check_fits(op, in, detail::encode_shared_bytes<T>(in.slots(), in.features()));
  });
}

Tensor pair_encode(const Tensor& keys, const Tensor& z, const Tensor& slot_codes, const Tensor& left,
                   const Tensor& right, const Tensor& weight, const Tensor& code_table, int64_t activation) {
  constexpr const char* op = "pair_encode";
  PairEncodeArguments in(op, keys, z, slot_codes, left, right, weight, code_table, activation);
  const OnDeviceOf device(keys);
  check_encode_fits(op, in);
  in.make_contiguous();
  const Tensor out = in.result();
  dispatch_floating(in.z.scalar_type(), [&]<class T>(Type<T>) {
    pair_encode_cuda<T>(in.encode_problem<T>(), data_if_any<T>(out), device.stream);
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> pair_encode_backward(const Tensor& dout_in, const Tensor& keys, const Tensor& z,
                                                        const Tensor& slot_codes, const Tensor& left,
                                                        const Tensor& right, const Tensor& weight,
                                                        const Tensor& code_table, int64_t activation, int64_t wanted) {
  constexpr const char* op = "pair_encode_backward";
  PairEncodeArguments in(op, keys, z, slot_codes, left, right, weight, code_table, activation);
  in.check_upstream(op, dout_in);
  const OnDeviceOf device(keys);
  check_encode_fits(op, in);
  in.make_contiguous();
  const Tensor dout = as_contiguous(dout_in);
  const auto results = in.gradients(wanted);
  const bool with_dz = std::get<0>(results).numel() > 0;
  const int64_t keys_of_pairs = with_dz ? in.pairs() * 2 * in.slots() : 0;
  const ScalarType sums = accumulate_type(in.z.scalar_type());
  const Tensor positions = empty_on(in.keys, {keys_of_pairs}, ScalarType::Int);
  const Tensor dz_keys = empty_on(in.keys, {keys_of_pairs * in.features()}, sums);
  const Tensor parts =
      empty_on(in.keys, {pair_encode_parts(in.pairs()) * (in.features() + num_pair_codes) * in.channels()}, sums);
  dispatch_floating(in.z.scalar_type(), [&]<class T>(Type<T>) {
    using Sum = accumulate_t<T>;
    pair_encode_backward_cuda<T>(in.encode_problem<T>(), data<T>(dout), data_if_any<T>(std::get<0>(results)),
                                 data_if_any<T>(std::get<1>(results)), data_if_any<T>(std::get<2>(results)),
                                 {data_if_any<int32_t>(positions), data_if_any<Sum>(dz_keys), data_if_any<Sum>(parts)},
                                 device.stream);
  });
  return results;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pair_join(const Tensor& keys, const Tensor& z, const Tensor& slot_codes,
                                                     const Tensor& left, const Tensor& right) {
  constexpr const char* op = "pair_join";
  SlotPairArguments in(op, keys, z, slot_codes, left, right);
  const OnDeviceOf device(keys);
  check_fits(op, in, detail::pair_shared_bytes(in.slots()));
  in.make_contiguous();
  const auto results = in.join_results();
  dispatch_floating(in.z.scalar_type(), [&]<class T>(Type<T>) {
    pair_join_cuda<T>(in.problem<T>(), data_if_any<int64_t>(std::get<1>(results)),
                      data_if_any<int32_t>(std::get<2>(results)), data_if_any<T>(std::get<0>(results)),
                      data_if_any<int32_t>(std::get<3>(results)), device.stream);
  });
  return results;
}

Tensor pair_join_backward(const Tensor& dz_joined_in, const Tensor& keys, const Tensor& slot_codes, const Tensor& left,
                          const Tensor& right) {
  constexpr const char* op = "pair_join_backward";
  const PairGradient gradient(op, dz_joined_in, keys);
  SlotPairArguments in(op, keys, gradient.z, slot_codes, left, right);
  gradient.check_pairs(op, in);
  const OnDeviceOf device(keys);
  check_fits(op, in, detail::pair_shared_bytes(in.slots()));
  in.make_contiguous();
  const Tensor dz_joined = as_contiguous(dz_joined_in);
  const Tensor scratch = empty_on(in.keys, {in.pairs() * 2 * in.slots()}, ScalarType::Int);
  dispatch_floating(in.z.scalar_type(), [&]<class T>(Type<T>) {
    pair_join_backward_cuda<T>(in.problem<T>(), data<T>(dz_joined), data_if_any<T>(gradient.z),
                               data_if_any<int32_t>(scratch), device.stream);
  });
  return gradient.z;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(anabranch, CUDA, m) {
  m.impl("pair_join", TORCH_BOX(&pair_join));
  m.impl("pair_join_backward", TORCH_BOX(&pair_join_backward));
  m.impl("pair_encode", TORCH_BOX(&pair_encode));
  m.impl("pair_encode_backward", TORCH_BOX(&pair_encode_backward));
}

}  // namespace anabranch
