// Joins of slot sets in torch: schemas and CPU kernels.
#include "anabranch/temporal/pair_encode_cpu.hpp"
#include "temporal/pair_checks.hpp"

namespace anabranch {
namespace {

Tensor pair_encode(const Tensor& keys, const Tensor& z, const Tensor& slot_codes, const Tensor& left,
                   const Tensor& right, const Tensor& weight, const Tensor& code_table, int64_t activation) {
  constexpr const char* op = "pair_encode";
  PairEncodeArguments in(op, keys, z, slot_codes, left, right, weight, code_table, activation);
  in.make_contiguous();
  in.check_values(op);
  const Tensor out = in.result();
  dispatch_floating(in.z.scalar_type(),
                    [&]<class T>(Type<T>) { pair_encode_cpu(in.encode_problem<T>(), mutable_data<T>(out)); });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> pair_encode_backward(const Tensor& dout_in, const Tensor& keys, const Tensor& z,
                                                        const Tensor& slot_codes, const Tensor& left,
                                                        const Tensor& right, const Tensor& weight,
                                                        const Tensor& code_table, int64_t activation, int64_t wanted) {
  constexpr const char* op = "pair_encode_backward";
  PairEncodeArguments in(op, keys, z, slot_codes, left, right, weight, code_table, activation);
  in.check_upstream(op, dout_in);
  in.make_contiguous();
  in.check_values(op);
  const Tensor dout = as_contiguous(dout_in);
  const auto results = in.gradients(wanted);
  dispatch_floating(in.z.scalar_type(), [&]<class T>(Type<T>) {
    pair_encode_backward_cpu(in.encode_problem<T>(), data<T>(dout), data_if_any<T>(std::get<0>(results)),
                             data_if_any<T>(std::get<1>(results)), data_if_any<T>(std::get<2>(results)));
  });
  return results;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pair_join(const Tensor& keys, const Tensor& z, const Tensor& slot_codes,
                                                     const Tensor& left, const Tensor& right) {
  constexpr const char* op = "pair_join";
  SlotPairArguments in(op, keys, z, slot_codes, left, right);
  in.make_contiguous();
  in.check_values(op);
  const auto results = in.join_results();
  dispatch_floating(in.z.scalar_type(), [&]<class T>(Type<T>) {
    pair_join_cpu(in.problem<T>(), mutable_data<int64_t>(std::get<1>(results)),
                  mutable_data<int32_t>(std::get<2>(results)), mutable_data<T>(std::get<0>(results)),
                  mutable_data<int32_t>(std::get<3>(results)));
  });
  return results;
}

Tensor pair_join_backward(const Tensor& dz_joined_in, const Tensor& keys, const Tensor& slot_codes, const Tensor& left,
                          const Tensor& right) {
  constexpr const char* op = "pair_join_backward";
  const PairGradient gradient(op, dz_joined_in, keys);
  SlotPairArguments in(op, keys, gradient.z, slot_codes, left, right);
  gradient.check_pairs(op, in);
  in.make_contiguous();
  in.check_values(op);
  const Tensor dz_joined = as_contiguous(dz_joined_in);
  dispatch_floating(in.z.scalar_type(), [&]<class T>(Type<T>) {
    pair_join_backward_cpu(in.problem<T>(), data<T>(dz_joined), mutable_data<T>(gradient.z));
  });
  return gradient.z;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(anabranch, m) {
  m.def(
      "pair_join(Tensor keys, Tensor z, Tensor slot_codes, Tensor left, Tensor right) -> (Tensor joined_z, Tensor "
      "joined_keys, Tensor codes, Tensor counts)");
  m.def("pair_join_backward(Tensor dz_joined, Tensor keys, Tensor slot_codes, Tensor left, Tensor right) -> Tensor");
  m.def(
      "pair_encode(Tensor keys, Tensor z, Tensor slot_codes, Tensor left, Tensor right, Tensor weight, Tensor "
      "code_table, int activation) -> Tensor");
  m.def(
      "pair_encode_backward(Tensor dout, Tensor keys, Tensor z, Tensor slot_codes, Tensor left, Tensor right, Tensor "
      "weight, Tensor code_table, int activation, int wanted) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(anabranch, CPU, m) {
  m.impl("pair_join", TORCH_BOX(&pair_join));
  m.impl("pair_join_backward", TORCH_BOX(&pair_join_backward));
  m.impl("pair_encode", TORCH_BOX(&pair_encode));
  m.impl("pair_encode_backward", TORCH_BOX(&pair_encode_backward));
}

}  // namespace anabranch
