// The cases that the tests of the gated FFN run through, and its forward in one call.
#pragma once

#include <string>
#include <vector>

#include "anabranch/skip/gated_ffn_cpu.hpp"
#include "gated_ffn_case.hpp"

namespace anabranch::testing {

/// Enough for five workers in every loop, and for a group of more rows than one chunk; odd sizes; one row.
inline constexpr GatedShape gated_shapes[] = {{700, 200, 172, 24}, {150, 37, 53, 5}, {1, 5, 7, 3}};

// No relu: its gradient is a step, and a rounded zero may lie on the other side of it.
inline const GatedOptions gated_options[] = {
    {{0, 100},
     true,
     false,
     true,
     NormKind::rms,
     true,
     false,
     Else::nothing,
     false,
     false,
     true,
     true,
     Activation::silu,
     true},
    {{0, 100},
     true,
     true,
     true,
     NormKind::layer,
     true,
     true,
     Else::branch,
     true,
     true,
     true,
     true,
     Activation::gelu,
     true},
    {{0, 13, 50, 100},
     false,
     false,
     false,
     NormKind::none,
     false,
     false,
     Else::base,
     false,
     false,
     true,
     true,
     Activation::relu2,
     false},
    {{30, 60, 80},
     true,
     true,
     true,
     NormKind::layer,
     false,
     true,
     Else::nothing,
     false,
     false,
     false,
     true,
     Activation::gelu_tanh,
     false},
    {{0, 20, 90},
     true,
     true,
     false,
     NormKind::rms,
     true,
     true,
     Else::base_and_branch,
     false,
     false,
     true,
     false,
     Activation::identity,
     false},
    {{0, 55, 100},
     false,
     true,
     true,
     NormKind::layer,
     true,
     true,
     Else::branch,
     false,
     true,
     false,
     false,
     Activation::gelu,
     false},
    {{0, 40},
     true,
     false,
     true,
     NormKind::none,
     false,
     false,
     Else::base,
     false,
     false,
     false,
     false,
     Activation::silu,
     false},
};

/// f(case) for every shape and option; small shapes also with all rows of the least width, and all of the largest.
template <class F>
void for_every_gated_case(F&& f) {
  for (const GatedShape& shape : gated_shapes) {
    for (GatedOptions o : gated_options) {
      for (const int only : {-1, 0, static_cast<int>(o.widths.size()) - 1}) {
        if (only >= 0 && shape.rows > 200) continue;
        o.only = only;
        f(GatedCase(shape, o));
      }
    }
  }
}

/// The rows' groups, and what the forward saves for the backward.
template <class T>
struct Saved {
  std::vector<int32_t> offsets, item_ids;
  std::vector<T> pre_activation, other_pre_activation;

  explicit Saved(const GatedCase& c)
      : offsets(c.num_groups() + 2, -1),
        item_ids(c.s.rows, -1),
        pre_activation(c.s.rows * c.parts * c.s.inner, T(untouched)),
        other_pre_activation(c.s.rows * c.other_parts * c.s.other_inner, T(untouched)) {}
  RowGroups groups() { return {offsets.data(), item_ids.data()}; }
};

/// y, and cosines; `saved` may be null.
template <class T, class MakeProducts>
std::vector<std::vector<accumulate_t<T>>> forward(const GatedCase& c, const GatedFfn<T>& problem,
                                                  const MakeProducts& products, Saved<T>* saved) {
  Saved<T> own(c);
  Saved<T>& used = saved ? *saved : own;
  std::vector<T> y(c.s.rows * c.s.features, T(untouched));
  std::vector<accumulate_t<T>> cosine(c.s.rows, untouched);
  group_rows_cpu(problem, used.groups());
  gated_ffn_cpu(problem, used.groups(), products, y.data(), cosine.data(), saved ? used.pre_activation.data() : nullptr,
                saved ? used.other_pre_activation.data() : nullptr);
  return {converted<accumulate_t<T>>(y), cosine};
}

}  // namespace anabranch::testing
