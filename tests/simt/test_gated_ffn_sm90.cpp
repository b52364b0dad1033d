// The gated FFN on its Hopper kernels, main loops included, forward and backward, against the definition in double:
// both tile shapes, rows by id and compact, several widths, either branch, no rows, rows beyond the capacity.
#include "anabranch/skip/branch_backward_sm90.cuh"
#include "gated_ffn_backward_run.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

constexpr int kMultiprocessors = 3;

/// Returns y.
template <class T>
std::vector<T> check(const GatedFfnShape& shape, int wanted = 0x7ff) {
  std::mt19937 random(11);
  GatedFfnCase<T> given(shape, random);
  {
    GatedFfnBackwardRun<T> run(given, wanted);
    run.backward(kMultiprocessors, kMultiprocessors);
    run.expect_right(10);
  }
  // Again, after the run has marked rows beyond the capacity as rows that skip: the same, with the cosine.
  GatedFfnBuffers<T> to(given);
  gated_ffn_cuda(
      given.problem(), given.capacity,
      {to.tables.data(), to.scales.data(), to.normed.data(), to.hidden.data(), to.other_hidden.data(), to.dots.data()},
      to.groups(), to.y.data(), to.cosine.data(), static_cast<T*>(nullptr), static_cast<T*>(nullptr), kMultiprocessors,
      nullptr);
  const InDouble<T> exact(given.problem());
  std::vector<double> y(to.y.size()), cosine(shape.num_rows);
  gated_ffn_reference(exact.problem, y.data(), cosine.data());
  expect_near(to.y, y, 8, "y");
  expect_near(to.cosine, cosine, 1e5, "cosine");
  return to.y.values();
}

/// Of 64 rows a tile, then of 128: more than 48 rows per group take the taller.
template <class T>
std::vector<std::vector<T>> check_shapes(bool tall) {
  const int64_t rows = tall ? 170 : 40;
  std::vector<std::vector<T>> results;
  results.push_back(check<T>({.num_rows = rows,
                              .features = 72,
                              .intermediate = 136,
                              .widths = {0, 136},
                              .share = {0.2, 0.8},
                              .biased = true}));
  results.push_back(check<T>({.num_rows = rows,
                              .features = 264,
                              .intermediate = 80,
                              .widths = {0, 13, 64},
                              .share = {0.3, 0.3, 0.3},
                              .other = 24,
                              .norm = NormKind::layer,
                              .other_normed = true,
                              .base = true}));
  results.push_back(check<T>({.num_rows = rows,
                              .features = 64,
                              .intermediate = 264,
                              .widths = {0, 100, 264},
                              .share = {0.3, 0.3, 0.3},
                              .other = 8,
                              .normed = false,
                              .gate = false,
                              .base = true,
                              .running_add_x = false,
                              .capacity = rows / 2}));
  return results;
}

void check_edges() {
  const GatedFfnShape plain{.num_rows = 20, .features = 16, .intermediate = 16, .widths = {0, 16}, .share = {0.5, 0.5}};
  const auto with = [&](auto&& change) {
    GatedFfnShape shape = plain;
    change(shape);
    check<half>(shape);
  };
  with([](auto& s) { s.share = {1.0, 0.0}; });
  with([](auto& s) { s.share = {0.0, 1.0}, s.capacity = 0; });
  with([](auto& s) { s.share = {0.0, 1.0}, s.other = 8; });
  with([](auto& s) { s.other = 8, s.adds_x = false, s.other_gated = false; });  // the other branch on portable kernels
  with([](auto& s) { s.features = 20; });                                       // both
}

/// What the kernels do not take must not reach them.
void check_choice() {
  std::mt19937 random(5);
  GatedFfnCase<bfloat16> given({.num_rows = 8, .features = 16, .intermediate = 16, .widths = {16}, .share = {1.0}},
                               random);
  int32_t tables[16], offsets[4], items[8];
  float scales[8];
  const auto multiprocessors = [&](auto&& change) {
    auto problem = given.problem();
    change(problem);
    return detail::GatedFfnBranches<bfloat16>(problem, 8, {offsets, items}, tables, given.x.data(), scales, 7)
        .ffn.multiprocessors;
  };
  expect(multiprocessors([](auto&) {}) == 7, "a problem that the kernels take");
  expect(multiprocessors([](auto& p) { p.x += 1; }) == 0 && multiprocessors([](auto& p) { p.base = p.x + 1; }) == 0 &&
             multiprocessors([](auto& p) { p.ffn.activation = Activation::gelu; }) == 0,
         "a problem that the kernels do not take");
}

}  // namespace

int main() {
  check_choice();
  check_edges();
  check_shapes<half>(true);
  check_shapes<half>(false);
  std::vector<std::vector<bfloat16>> first;
  for_each_schedule([&] {
    const auto results = check_shapes<bfloat16>(true);
    check_shapes<bfloat16>(false);
    if (first.empty()) first = results;
    for (size_t i = 0; i < first.size(); ++i) expect(same_bits(results[i], first[i]), "the same bits in any order");
  });
  std::puts("gated_ffn_sm90: ok");
}
