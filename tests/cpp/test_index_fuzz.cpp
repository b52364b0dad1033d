// Random inputs and mutations of them for the interpreter in fuzz_index.hpp. With -DANABRANCH_LIBFUZZER libFuzzer
// chooses the inputs instead (CONTRIBUTING.md).
#include "fuzz_index.hpp"

#if defined(ANABRANCH_LIBFUZZER)

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  return anabranch::testing::fuzz_index(data, size);
}

#else

#include <unistd.h>

namespace {

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
constexpr int num_inputs = 400;
#else
constexpr int num_inputs = 8000;
#endif

using Input = std::vector<uint8_t>;
std::mt19937_64 choices(5);  // apart from the interpreter's numbers, which begin anew with each input

size_t chosen(size_t n) { return choices() % n; }

Input random_input() {
  Input input(1 + chosen(400));
  for (uint8_t& byte : input) byte = static_cast<uint8_t>(choices());
  return input;
}

/// Bytes changed, a stretch repeated, one left out, or the tail of another input.
Input mutated(Input input, const Input& other) {
  for (size_t n = 1 + chosen(4); n > 0; --n) {
    const size_t from = chosen(input.size()), length = std::min(input.size() - from, 1 + chosen(60));
    const auto begin = input.begin() + static_cast<int64_t>(from), end = begin + static_cast<int64_t>(length);
    switch (chosen(4)) {
      case 0:
        *begin = static_cast<uint8_t>(choices());
        break;
      case 1: {
        const Input stretch(begin, end);
        input.insert(begin, stretch.begin(), stretch.end());
        break;
      }
      case 2:
        if (length < input.size()) input.erase(begin, end);
        break;
      default:
        input.resize(from + 1);
        input.insert(input.end(), other.begin() + static_cast<int64_t>(chosen(other.size())), other.end());
    }
  }
  input.resize(std::min<size_t>(input.size(), 1000));
  return input;
}

}  // namespace

int main() {
  alarm(100);  // an operation that never ends is a failure, too
  anabranch::parallel_backend().num_threads = [] { return 1; };
  std::vector<Input> pool;
  for (int i = 0; i < num_inputs; ++i) {
    Input input = pool.size() < 50 || chosen(4) == 0 ? random_input()
                                                     : mutated(pool[chosen(pool.size())], pool[chosen(pool.size())]);
    anabranch::testing::fuzz_index(input.data(), input.size());
    if (pool.size() < 200) {
      pool.push_back(std::move(input));
    } else {
      pool[chosen(pool.size())] = std::move(input);
    }
  }
  std::puts("index fuzz: ok");
}

#endif
