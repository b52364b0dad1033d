// The arguments of pair_join, pair_encode and their backwards, on every device; and, on the CPU, their values.
#pragma once

#include <tuple>

#include "anabranch/temporal/pair_encode.hpp"
#include "temporal/id_checks.hpp"

namespace anabranch {

struct SlotPairArguments {
  Tensor keys, z, slot_codes, left, right;

  SlotPairArguments(const char* op, const Tensor& keys_in, const Tensor& z_in, const Tensor& slot_codes_in,
                    const Tensor& left_in, const Tensor& right_in)
      : keys(keys_in), z(z_in), slot_codes(slot_codes_in), left(left_in), right(right_in) {
    check_dtype(op, "keys", keys, ScalarType::Long);
    check_dim(op, "keys", keys, 2);
    check(keys.size(1) <= max_pair_slots, op, ": keys has shape ", shape_string(keys), ", must be (rows, at most ",
          max_pair_slots, " slots); join fewer slots");
    check_floating(op, "z", z);
    check_same_device(op, "z", z, "keys", keys);
    check(z.dim() == 3 && z.size(0) == keys.size(0) && z.size(1) == keys.size(1), op, ": z has shape ", shape_string(z),
          ", must be (", keys.size(0), ", ", keys.size(1), ", features) like keys; give each slot a vector");
    check_same_device(op, "slot_codes", slot_codes, "keys", keys);
    check_index_shape(op, "slot_codes", slot_codes, ScalarType::Int, keys.size(1), "one for each slot");
    check_same_device(op, "left", left, "keys", keys);
    check_same_device(op, "right", right, "keys", keys);
    check_dtype(op, "left", left, ScalarType::Long);
    check_dim(op, "left", left, 1);
    check_index_shape(op, "right", right, ScalarType::Long, left.size(0), "one for each of left");
  }

  int64_t rows() const { return keys.size(0); }
  int64_t slots() const { return keys.size(1); }
  int64_t features() const { return z.size(2); }
  int64_t pairs() const { return left.size(0); }

  void make_contiguous() {
    keys = as_contiguous(keys), z = as_contiguous(z), slot_codes = as_contiguous(slot_codes);
    left = as_contiguous(left), right = as_contiguous(right);
  }

  /// CPU only, after make_contiguous: rows that exist, codes of one to seven.
  void check_values(const char* op) const {
    const int32_t* codes = data<int32_t>(slot_codes);
    for (int64_t s = 0; s < slots(); ++s) {
      check(codes[s] >= 1 && codes[s] <= 7, op, ": slot_codes[", s, "] is ", codes[s],
            ", must be in [1, 7]; give each slot the bit of its hop: 1, 2 or 4");
    }
    check_ids(op, "left", left, rows(), "pass row numbers of keys");
    check_ids(op, "right", right, rows(), "pass row numbers of keys");
  }

  template <class T>
  SlotPairs<T> problem() const {
    return {data<int64_t>(keys),
            data<T>(z),
            data<int32_t>(slot_codes),
            data<int64_t>(left),
            data<int64_t>(right),
            rows(),
            slots(),
            features(),
            pairs()};
  }

  /// joined z, joined keys, codes, counts.
  std::tuple<Tensor, Tensor, Tensor, Tensor> join_results() const {
    return {empty_on(keys, {pairs(), 2 * slots(), features()}, z.scalar_type()),
            empty_on(keys, {pairs(), 2 * slots()}, ScalarType::Long),
            empty_on(keys, {pairs(), 2 * slots()}, ScalarType::Int), empty_on(keys, {pairs()}, ScalarType::Int)};
  }
  Tensor z_gradient() const { return empty_on(z, {rows(), slots(), features()}, z.scalar_type()); }

 private:
  static void check_index_shape(const char* op, const char* name, const Tensor& tensor, ScalarType type, int64_t size,
                                const char* advice) {
    check_dtype(op, name, tensor, type);
    check(tensor.dim() == 1 && tensor.size(0) == size, op, ": ", name, " has shape ", shape_string(tensor),
          ", must be (", size, ",); pass ", advice);
  }
};

/// What pair_join_backward gets and makes: dz_joined [pairs, 2 slots, features], and z's gradient beside keys.
struct PairGradient {
  Tensor dz_joined, z;

  PairGradient(const char* op, const Tensor& dz_joined_in, const Tensor& keys) : dz_joined(dz_joined_in), z(keys) {
    check_dim(op, "keys", keys, 2);
    check_floating(op, "dz_joined", dz_joined);
    check_same_device(op, "dz_joined", dz_joined, "keys", keys);
    check_dim(op, "dz_joined", dz_joined, 3);
    z = empty_on(keys, {keys.size(0), keys.size(1), dz_joined.size(2)}, dz_joined.scalar_type());
  }

  void check_pairs(const char* op, const SlotPairArguments& in) const {
    check(dz_joined.size(0) == in.pairs() && dz_joined.size(1) == 2 * in.slots(), op, ": dz_joined has shape ",
          shape_string(dz_joined), ", must be (", in.pairs(), ", ", 2 * in.slots(),
          ", features) like the joined z; pass its gradient");
  }
};

struct PairEncodeArguments : SlotPairArguments {
  Tensor weight, code_table;
  PairActivation activation;

  PairEncodeArguments(const char* op, const Tensor& keys_in, const Tensor& z_in, const Tensor& slot_codes_in,
                      const Tensor& left_in, const Tensor& right_in, const Tensor& weight_in,
                      const Tensor& code_table_in, int64_t activation_in)
      : SlotPairArguments(op, keys_in, z_in, slot_codes_in, left_in, right_in),
        weight(weight_in),
        code_table(code_table_in),
        activation(static_cast<PairActivation>(activation_in)) {
    check(activation_in == 0 || activation_in == 1, op, ": activation is ", activation_in,
          ", must be 0 (none) or 1 (relu); pass one of these");
    check_same_device(op, "weight", weight, "keys", keys);
    check_dtype(op, "weight", weight, z.scalar_type());
    check(weight.dim() == 2 && weight.size(1) == features(), op, ": weight has shape ", shape_string(weight),
          ", must be (channels, ", features(), ") for z's features; pass a linear layer's weight");
    check_same_device(op, "code_table", code_table, "keys", keys);
    check_dtype(op, "code_table", code_table, z.scalar_type());
    check(code_table.dim() == 2 && code_table.size(0) == num_pair_codes && code_table.size(1) == channels(), op,
          ": code_table has shape ", shape_string(code_table), ", must be (", num_pair_codes, ", ", channels(),
          ") for weight's channels; pass a row for each code");
  }

  int64_t channels() const { return weight.size(0); }

  void make_contiguous() {
    SlotPairArguments::make_contiguous();
    weight = as_contiguous(weight), code_table = as_contiguous(code_table);
  }

  /// dout [pairs, channels].
  void check_upstream(const char* op, const Tensor& dout) const {
    check_same_device(op, "dout", dout, "keys", keys);
    check_dtype(op, "dout", dout, z.scalar_type());
    check(dout.dim() == 2 && dout.size(0) == pairs() && dout.size(1) == channels(), op, ": dout has shape ",
          shape_string(dout), ", must be (", pairs(), ", ", channels(), ") like the result; pass its gradient");
  }

  template <class T>
  PairEncode<T> encode_problem() const {
    return {problem<T>(), data<T>(weight), data<T>(code_table), channels(), activation};
  }

  Tensor result() const { return empty_on(z, {pairs(), channels()}, z.scalar_type()); }

  /// dz, dweight and dcode_table, empty where their bit is not set.
  std::tuple<Tensor, Tensor, Tensor> gradients(int64_t wanted) const {
    const ScalarType type = z.scalar_type();
    return {wanted & 1 ? z_gradient() : empty_on(z, {0}, type),
            wanted & 2 ? empty_on(z, {channels(), features()}, type) : empty_on(z, {0}, type),
            wanted & 4 ? empty_on(z, {num_pair_codes, channels()}, type) : empty_on(z, {0}, type)};
  }
};

}  // namespace anabranch
