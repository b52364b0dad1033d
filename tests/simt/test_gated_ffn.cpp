// The gated FFN's kernels for any GPU on the harness, against the definition in double: every dtype, norm, list of
// widths, kind of row that skips, choices that do not exist, capacities that are too small.
#include "anabranch/skip/branch_sm90.cuh"
#include "anabranch/skip/gated_ffn.cuh"
#include "gated_ffn_case.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

template <class T>
void check_forward(const GatedFfnShape& shape, std::mt19937& random) {
  using Sum = accumulate_t<T>;
  GatedFfnCase<T> given(shape, random);
  GatedFfnBuffers<T> to(given);
  const auto run = [&](T* pre, T* other_pre, Sum* cosine) {
    gated_ffn_cuda(given.problem(), given.capacity,
                   {to.tables.data(), to.scales.data(), to.normed.data(), to.hidden.data(), to.other_hidden.data(),
                    to.dots.data()},
                   to.groups(), to.y.data(), cosine, pre, other_pre, 0, nullptr);
  };
  run(to.pre_activation.data(), to.other_pre_activation.data(), to.cosine.data());

  std::vector<int32_t> offsets, items;
  given.group(offsets, items);
  expect(to.offsets.values() == offsets && to.item_ids.values() == items, "rows by group");
  const InDouble<T> exact(given.problem());
  std::vector<double> y(to.y.size()), cosine(shape.num_rows);
  gated_ffn_reference(exact.problem, y.data(), cosine.data());
  const double units = sizeof(T) < 4 ? 6 : 100;
  expect_near(to.y, y, units, "y");
  expect_near(to.cosine, cosine, sizeof(T) < 4 ? 1e5 : 100, "cosine");

  const auto trained = to.y.values();
  run(nullptr, nullptr, nullptr);
  expect(same_bits(to.y.values(), trained), "inference and training agree");
  const int num_groups = given.problem().widths.num_groups();
  for (int g = 0; g < num_groups; ++g) {
    for (int64_t e = offsets[g]; e < offsets[g + 1]; ++e) {
      for (int64_t c = 0; c < given.parts * shape.intermediate; ++c) {
        const Sum value = static_cast<Sum>(to.pre_activation.data()[e * given.parts * shape.intermediate + c]);
        expect((value == value) == (c % shape.intermediate < given.problem().widths.width_of_group(g)),
               "the first product's output, as far as a row's width goes");
      }
    }
  }
  for (int64_t e = offsets[num_groups]; e < given.shape.num_rows; ++e) {
    const int64_t t = items[e];
    for (int64_t j = 0; shape.adds_x && !shape.base && shape.other == 0 && j < shape.features; ++j) {
      const T in = given.x.data()[t * shape.features + j], out = to.y.data()[t * shape.features + j];
      expect(static_cast<Sum>(in) == static_cast<Sum>(out), "rows that skip are copied");
    }
  }
}

template <class T>
void check_dtype(std::mt19937& random) {
  const auto layer = NormKind::layer;
  check_forward<T>({.num_rows = 75, .features = 70, .intermediate = 37, .widths = {0, 37}, .share = {0.3, 0.6}},
                   random);
  check_forward<T>({.num_rows = 70,
                    .features = 64,
                    .intermediate = 40,
                    .widths = {0, 8, 23, 40},
                    .share = {0.2, 0.3, 0.2, 0.2},
                    .other = 9,
                    .norm = layer,
                    .other_normed = true,
                    .other_gated = false,
                    .biased = true,
                    .base = true,
                    .transposed = true,
                    .activation = Activation::gelu_tanh},
                   random);
  check_forward<T>({.num_rows = 40,
                    .features = 33,
                    .intermediate = 21,
                    .widths = {5, 21},
                    .share = {0.5, 0.3},
                    .other = 70,
                    .choice_bytes = 1,
                    .normed = false,
                    .gated = false,
                    .gate = false,
                    .running_add_x = false,
                    .adds_x = false},
                   random);
  check_forward<T>({.num_rows = 50,
                    .features = 16,
                    .intermediate = 24,
                    .widths = {0, 12, 24},
                    .share = {0.1, 0.4, 0.5},
                    .choice_bytes = 1,
                    .norm_weights = false,
                    .base = true,
                    .adds_x = false,
                    .capacity = 29},
                   random);
}

void check_edges(std::mt19937& random) {
  const GatedFfnShape plain{.num_rows = 20, .features = 8, .intermediate = 8, .widths = {0, 8}, .share = {0.5, 0.5}};
  const auto check = [&](auto&& change) {
    GatedFfnShape shape = plain;
    change(shape);
    check_forward<float>(shape, random);
    check_forward<bfloat16>(shape, random);
  };
  check([](auto& s) { s.share = {1.0, 0.0}; });                  // nothing runs
  check([](auto& s) { s.share = {0.0, 1.0}; });                  // everything runs
  check([](auto& s) { s.share = {0.0, 1.0}, s.capacity = 0; });  // nothing may
  check([](auto& s) { s.share = {0.0, 1.0}, s.capacity = 7; });  // too few may
  check([](auto& s) { s.share = {0.0, 0.0}; });                  // no choice exists
  check([](auto& s) { s.widths = {0}, s.share = {0.5}; });       // no width runs
  check([](auto& s) { s.widths = {8}, s.share = {1.0}; });       // none skips
  check([](auto& s) { s.num_rows = 0; });
  check([](auto& s) { s.num_rows = 1; });
  check([](auto& s) { s.other = 8, s.other_normed = true, s.capacity = 5; });
  check([](auto& s) {
    s.widths = {1, 2, 3, 4, 5, 6, 7, 8};
    s.share = std::vector<double>(8, 0.12);
    s.capacity = 11;
  });
  check([](auto& s) { s.adds_x = false; });  // rows that skip are zeros
}

/// Many blocks, rows in more than one round of 32, choices at any address: grouping alone.
void check_grouping(std::mt19937& random) {
  for (const int64_t num_rows : {9001, 16400}) {
    for (const int shift : {0, 1}) {
      std::vector<int32_t> sizes(5);
      std::vector<int64_t> values(static_cast<size_t>(num_rows));
      std::vector<uint8_t> bytes;
      for (auto& value : values) bytes.push_back(static_cast<uint8_t>(value = static_cast<int64_t>(random() % 6)));
      Guarded<int64_t> choices(values, shift);
      Guarded<uint8_t> narrow(bytes, shift);
      for (const bool is_narrow : {false, true}) {
        GatedFfn<float> problem{};
        problem.num_rows = num_rows;
        problem.widths = {5, {0, 2, 3, 5, 9}, choices.data(), 8};
        if (is_narrow) problem.widths.choice = narrow.data(), problem.widths.choice_bytes = 1;
        problem.skipped_add_x = true;
        const int64_t capacity = num_rows / 3;
        Guarded<int32_t> tables(gated_ffn_tables(problem.widths)), offsets(6), items(num_rows);
        Guarded<float> scales(num_rows);
        gated_ffn_cuda(problem, capacity, {tables.data(), scales.data(), nullptr, nullptr, nullptr, nullptr},
                       {offsets.data(), items.data()}, static_cast<float*>(nullptr), static_cast<float*>(nullptr),
                       static_cast<float*>(nullptr), static_cast<float*>(nullptr), 0, nullptr);
        std::vector<int32_t> expected;
        std::vector<bool> runs(static_cast<size_t>(num_rows));
        for (int64_t g = 0; g < 4; ++g) {
          for (int64_t t = 0; t < num_rows && static_cast<int64_t>(expected.size()) < capacity; ++t)
            if (values[t] == 4 - g) expected.push_back(static_cast<int32_t>(t)), runs[t] = true;
        }
        for (int64_t t = 0; t < num_rows; ++t)
          if (!runs[t]) expected.push_back(static_cast<int32_t>(t));
        expect(items.values() == expected, "a stable sort of many rows, and a capacity");
        expect(offsets.data()[5] == num_rows && offsets.data()[4] == capacity, "offsets of many rows");
      }
    }
  }
}

}  // namespace

int main() {
  std::mt19937 random(3);
  check_grouping(random);
  unsigned round = 0;
  for_each_schedule([&] {
    std::mt19937 own(++round);
    if (round % 2 == 0) {  // each dtype in every second thread order
      check_dtype<float>(own);
      check_dtype<half>(own);
    } else {
      check_dtype<double>(own);
      check_dtype<bfloat16>(own);
    }
    check_edges(own);
  });
  std::puts("gated_ffn: ok");
}
