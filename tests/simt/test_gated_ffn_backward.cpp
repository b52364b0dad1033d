// The backward of the gated FFN's kernels for any GPU on the harness, against the definition in double: every dtype,
// norm, list of widths and kind of row that skips, any set of wanted gradients.
#include "anabranch/skip/branch_backward_sm90.cuh"
#include "anabranch/skip/gated_ffn_backward.cuh"
#include "gated_ffn_backward_run.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

template <class T>
void check_backward(const GatedFfnShape& shape, std::mt19937& random, int wanted = 0x7ff) {
  GatedFfnCase<T> given(shape, random);
  GatedFfnBackwardRun<T> run(given, wanted);
  run.backward(0, 0);
  run.expect_right(sizeof(T) < 4 ? 8 : 400);
}

template <class T>
void check_dtype(std::mt19937& random) {
  const auto layer = NormKind::layer;
  const auto some = [&] { return random() % 3 ? 0x7ff : static_cast<int>(random() % 0x800); };
  check_backward<T>({.num_rows = 75, .features = 70, .intermediate = 37, .widths = {0, 37}, .share = {0.3, 0.6}},
                    random, some());
  check_backward<T>({.num_rows = 70,
                     .features = 64,
                     .intermediate = 40,
                     .widths = {0, 8, 23, 39},
                     .share = {0.2, 0.3, 0.2, 0.2},
                     .other = 9,
                     .norm = layer,
                     .other_normed = true,
                     .other_gated = false,
                     .biased = true,
                     .base = true,
                     .transposed = true,
                     .activation = Activation::gelu_tanh},
                    random, some());
  check_backward<T>({.num_rows = 40,
                     .features = 33,
                     .intermediate = 21,
                     .widths = {5, 17},
                     .share = {0.5, 0.3},
                     .other = 70,
                     .choice_bytes = 1,
                     .normed = false,
                     .gated = false,
                     .gate = false,
                     .running_add_x = false,
                     .adds_x = false},
                    random, some());
  check_backward<T>({.num_rows = 50,
                     .features = 16,
                     .intermediate = 24,
                     .widths = {0, 12, 24},
                     .share = {0.1, 0.4, 0.5},
                     .choice_bytes = 1,
                     .norm_weights = false,
                     .base = true,
                     .adds_x = false,
                     .capacity = 29},
                    random, some());
}

void check_edges(std::mt19937& random) {
  const GatedFfnShape plain{.num_rows = 20, .features = 8, .intermediate = 8, .widths = {0, 8}, .share = {0.5, 0.5}};
  const auto check = [&](auto&& change) {
    GatedFfnShape shape = plain;
    change(shape);
    check_backward<float>(shape, random);
    check_backward<bfloat16>(shape, random);
  };
  check([](auto& s) { s.share = {1.0, 0.0}; });
  check([](auto& s) { s.share = {0.0, 1.0}, s.capacity = 0; });
  check([](auto& s) { s.share = {0.0, 1.0}, s.capacity = 7; });
  check([](auto& s) { s.widths = {0}, s.share = {0.5}; });
  check([](auto& s) { s.widths = {8}, s.share = {1.0}, s.normed = false; });
  check([](auto& s) { s.num_rows = 0; });
  check([](auto& s) { s.num_rows = 0, s.other = 8; });
  check([](auto& s) { s.num_rows = 600, s.other = 3, s.other_normed = true, s.normed = false; });
  check([](auto& s) {
    s.widths = {1, 2, 3, 4, 5, 6, 7};
    s.share = std::vector<double>(7, 0.13);
    s.capacity = 11;
    s.biased = true;
  });
}

}  // namespace

int main() {
  unsigned round = 0;
  for_each_schedule([&] {
    std::mt19937 random(++round);
    if (round % 2 == 0) {  // each dtype in every second thread order
      check_dtype<float>(random);
      check_dtype<half>(random);
    } else {
      check_dtype<double>(random);
      check_dtype<bfloat16>(random);
    }
    check_edges(random);
  });
  std::puts("gated_ffn_backward: ok");
}
