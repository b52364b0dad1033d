// Joins of slot sets on the harness against their definitions: to the bit what is joined, up to rounding what is
// encoded; keys that repeat within a row, empty slots and rows, rows out of range, more slots than a block has threads.
#include "anabranch/temporal/pair_encode.cuh"
#include "guarded.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

template <class To, class From>
std::vector<To> converted(const std::vector<From>& values) {
  std::vector<To> out;
  for (const From value : values)
    out.push_back(To(static_cast<accumulate_t<To>>(static_cast<accumulate_t<From>>(value))));
  return out;
}

template <class T>
struct Case {
  int64_t rows, slots, features, pairs, channels;
  Guarded<int64_t> keys, left, right;
  Guarded<int32_t> codes;
  Guarded<T> z, weight, table;

  Case(int64_t rows_, int64_t slots_, int64_t features_, int64_t pairs_, int64_t channels_, std::mt19937& random)
      : rows(rows_),
        slots(slots_),
        features(features_),
        pairs(pairs_),
        channels(channels_),
        keys(keys_of(rows * slots, slots, random)),
        left(rows_of(pairs, rows, random)),
        right(rows_of(pairs, rows, random)),
        codes(codes_of(slots, random)),
        z(random_values<T>(rows * slots * features, random)),
        weight(random_values<T>(channels * features, random)),
        table(random_values<T>(num_pair_codes * channels, random)) {}

  SlotPairs<T> sets() {
    return {keys.data(), z.data(), codes.data(), left.data(), right.data(), rows, slots, features, pairs};
  }
  PairEncode<T> encode(PairActivation activation) {
    return {sets(), weight.data(), table.data(), channels, activation};
  }

  static std::vector<int64_t> keys_of(int64_t n, int64_t slots, std::mt19937& random) {
    std::vector<int64_t> out(n);
    for (int64_t& key : out) {
      const auto drawn = static_cast<int64_t>(random() % (2 * slots + 2));
      key = drawn % 7 == 0 ? -1 : drawn << 40 | drawn;
    }
    for (int64_t i = 0; i < slots && i < n; ++i) out[i] = -1;
    return out;
  }
  static std::vector<int64_t> rows_of(int64_t n, int64_t rows, std::mt19937& random) {
    std::vector<int64_t> out(n);
    for (int64_t& row : out) row = static_cast<int64_t>(random() % (rows + 2)) - 1;  // -1 and rows are none
    return out;
  }
  static std::vector<int32_t> codes_of(int64_t n, std::mt19937& random) {
    std::vector<int32_t> out(n);
    for (int32_t& code : out) code = 1 << random() % 3;
    return out;
  }
};

template <class T>
void check_join(Case<T>& in) {
  const SlotPairs<T> sets = in.sets();
  const int64_t width = 2 * in.slots;
  Guarded<int64_t> keys(in.pairs * width);
  Guarded<int32_t> codes(in.pairs * width), counts(in.pairs), scratch(in.pairs * width);
  Guarded<T> z(in.pairs * width * in.features), dz(in.rows * in.slots * in.features);
  std::vector<int64_t> expected_keys(keys.size());
  std::vector<int32_t> expected_codes(codes.size()), expected_counts(in.pairs);
  std::vector<T> expected_z(z.size()), expected_dz(dz.size());
  pair_join_reference(sets, expected_keys.data(), expected_codes.data(), expected_z.data(), expected_counts.data());
  pair_join_cuda<T>(sets, keys.data(), codes.data(), z.data(), counts.data(), nullptr);
  expect(keys.values() == expected_keys, "keys");
  expect(codes.values() == expected_codes, "codes");
  expect(counts.values() == expected_counts, "counts");
  expect(same_bits(z.values(), expected_z), "z");
  pair_join_backward_reference(sets, z.data(), expected_dz.data());
  pair_join_backward_cuda<T>(sets, z.data(), dz.data(), scratch.data(), nullptr);
  expect(same_bits(dz.values(), expected_dz), "dz");
}

template <class T>
void check_encode(Case<T>& in, PairActivation activation, std::mt19937& random) {
  // In double, of the same rounded numbers: what the definition is without rounding.
  const auto z = converted<double>(in.z.values()), weight = converted<double>(in.weight.values());
  const auto table = converted<double>(in.table.values());
  const SlotPairs<double> sets{in.keys.data(), z.data(), in.codes.data(), in.left.data(), in.right.data(),
                               in.rows,        in.slots, in.features,     in.pairs};
  const PairEncode<double> exact{sets, weight.data(), table.data(), in.channels, activation};
  Guarded<T> dout(random_values<T>(in.pairs * in.channels, random)), out(dout.size());
  const auto dout64 = converted<double>(dout.values());
  std::vector<double> out64(out.size()), dz64(z.size()), dweight64(weight.size()), dtable64(table.size());
  pair_encode_reference(exact, out64.data());
  pair_encode_backward_reference(exact, dout64.data(), dz64.data(), dweight64.data(), dtable64.data());

  const double units = sizeof(T) == 2 ? 1 : 64;
  const PairEncode<T> problem = in.encode(activation);
  pair_encode_cuda<T>(problem, out.data(), nullptr);
  expect(spacing_error(out.values(), converted<T>(out64)) <= units, "out");
  using Sum = accumulate_t<T>;
  Guarded<int32_t> positions(in.pairs * 2 * in.slots);
  Guarded<Sum> dz_keys(positions.size() * in.features);
  Guarded<Sum> parts(pair_encode_parts(in.pairs) * (in.features + num_pair_codes) * in.channels);
  for (const int wanted : {7, 1, 6}) {
    Guarded<T> dz(wanted & 1 ? in.z.size() : 0), dweight(wanted & 2 ? in.weight.size() : 0);
    Guarded<T> dtable(wanted & 4 ? in.table.size() : 0);
    pair_encode_backward_cuda<T>(problem, dout.data(), wanted & 1 ? dz.data() : nullptr,
                                 wanted & 2 ? dweight.data() : nullptr, wanted & 4 ? dtable.data() : nullptr,
                                 {positions.data(), dz_keys.data(), parts.data()}, nullptr);
    if (wanted & 1) expect(spacing_error(dz.values(), converted<T>(dz64)) <= units, "dz");
    if (wanted & 2) expect(spacing_error(dweight.values(), converted<T>(dweight64)) <= units, "dweight");
    if (wanted & 4) expect(spacing_error(dtable.values(), converted<T>(dtable64)) <= units, "dcode_table");
  }
}

template <class T>
void check_dtype() {
  std::mt19937 random(5);
  const int64_t shapes[][5] = {// rows, slots, features, pairs, channels
                               {4, 9, 4, 5, 40}, {3, 70, 3, 4, 7}, {3, 64, 4, 2, 5}, {2, 1, 1, 3, 1}, {3, 5, 0, 2, 4},
                               {2, 0, 4, 2, 3},  {0, 4, 4, 2, 3},  {2, 3, 4, 0, 5},  {2, 3, 4, 2, 0}};
  for (const auto& [rows, slots, features, pairs, channels] : shapes) {
    Case<T> in(rows, slots, features, pairs, channels, random);
    check_join(in);
    check_encode(in, PairActivation::none, random);
    check_encode(in, PairActivation::relu, random);
  }
}

/// A power of two of slots has the table that it asks for, and as many slots as there may be still join.
void check_shared_memory() {
  expect(detail::pair_table_places(64) == 256 && detail::pair_table_places(65) == 512, "places of the table");
  std::mt19937 random(7);
  Case<float> in(2, max_pair_slots, 1, 1, 1, random);
  for (int64_t i = 0; i < in.keys.size(); ++i) in.keys.data()[i] = i << 33;  // all distinct: the table at its fullest
  check_join(in);
}

/// More pairs than the backward has blocks.
void check_many_pairs() {
  std::mt19937 random(6);
  Case<float> in(5, 3, 4, 150, 3, random);
  check_join(in);
  check_encode(in, PairActivation::relu, random);
}

}  // namespace

int main() {
  for_each_schedule([] {
    check_dtype<float>();
    check_dtype<bfloat16>();
  });
  check_dtype<double>();
  check_dtype<half>();
  check_many_pairs();
  check_shared_memory();
  std::puts("pair_join: ok");
}
