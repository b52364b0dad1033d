// The gated mean on the CPU, forward and backward: against the definitions in double for every dtype and instruction
// set, the same bits on several threads as on one, and each gradient alone as both together.
#include "anabranch/mixers/gated_mean_cpu.hpp"
#include "cpu_kernels.hpp"

namespace {

using namespace anabranch;
using namespace anabranch::testing;

struct Shape {
  int64_t tokens, streams, channels;
};

/// Enough for five workers; more channels than a block of sums; one of everything; no tokens; no channels.
constexpr Shape shapes[] = {{90, 4, 260}, {7, 3, 600}, {1, 1, 1}, {5, 9, 17}, {0, 4, 8}, {3, 2, 0}};

template <class T>
void check_shape(const Shape& s) {
  context = std::string("gated_mean, ") + type_name<T>() + ", " + std::to_string(s.tokens) + " tokens of " +
            std::to_string(s.streams) + " streams of " + std::to_string(s.channels);
  const double units = sizeof(T) == 2 ? 1 : 8;
  const int64_t numbers = s.tokens * s.streams * s.channels;
  // Large gates too: e^x leaves float's range on both sides.
  const auto x = random_values<T>(numbers), logits = random_values<T>(numbers, 20);
  const auto du = random_values<T>(s.tokens * s.channels);
  const auto x64 = converted<double>(x), logits64 = converted<double>(logits), du64 = converted<double>(du);
  const GatedMean<double> exact{x64.data(), logits64.data(), s.tokens, s.streams, s.channels};
  std::vector<double> u64(du.size()), dx64(x.size()), dlogits64(x.size());
  gated_mean_reference(exact, u64.data());
  gated_mean_backward_reference(exact, du64.data(), dx64.data(), dlogits64.data());
  const GatedMean<T> problem{x.data(), logits.data(), s.tokens, s.streams, s.channels};
  on_every_cpu_isa([&] {
    const auto forward = [&] {
      std::vector u(1, std::vector<T>(du.size()));
      gated_mean_cpu(problem, u[0].data());
      return u;
    };
    on_several_threads(forward, [&](const auto& found) { expect_close<T>(found[0], u64, units, "u"); });
    const auto backward = [&] {
      std::vector gradients(2, std::vector<T>(x.size()));
      gated_mean_backward_cpu(problem, du.data(), gradients[0].data(), gradients[1].data());
      return gradients;
    };
    on_several_threads(backward, [&](const auto& found) {
      expect_close<T>(found[0], dx64, units, "dx");
      expect_close<T>(found[1], dlogits64, units, "dlogits");
      std::vector<T> dx(x.size()), dlogits(x.size());
      gated_mean_backward_cpu(problem, du.data(), dx.data(), static_cast<T*>(nullptr));
      gated_mean_backward_cpu(problem, du.data(), static_cast<T*>(nullptr), dlogits.data());
      expect(same_bits(dx, found[0]) && same_bits(dlogits, found[1]), "a gradient alone has other bits");
    });
  });
}

}  // namespace

int main() {
  for (const Shape& shape : shapes) {
    check_shape<float>(shape);
    check_shape<bfloat16>(shape);
    if (!every_dtype) continue;
    check_shape<double>(shape);
    check_shape<half>(shape);
  }
  std::puts("gated_mean: ok");
}
