// Google Benchmark where it was found (ANABRANCH_GOOGLE_BENCHMARK), else as much of its interface as is used here: the
// same sources are microbenchmarks either way. Without it: PROGRAM [--benchmark_filter=PART_OF_A_NAME]
// [--benchmark_min_time=SECONDS], and times are real time.
#pragma once

#ifdef ANABRANCH_GOOGLE_BENCHMARK
#include <benchmark/benchmark.h>
#else

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace benchmark {

/// A number to show beside the time; with the flag, of one iteration and per second.
struct Counter {
  enum Flags { kDefaults, kIsIterationInvariantRate };
  Counter(double value_ = 0, Flags flags_ = kDefaults) : value(value_), flags(flags_) {}
  double value;
  Flags flags;
};

class State {
 public:
  State(std::vector<int64_t> arguments, int64_t iterations) : arguments_(std::move(arguments)), left_(iterations) {}

  int64_t range(std::size_t index = 0) const { return arguments_[index]; }

  // for (auto _ : state): the time of all iterations, from begin() to the comparison that ends the loop.
  struct [[maybe_unused]] Ignored {};
  struct Iterator {
    State* state;
    Ignored operator*() const { return {}; }
    void operator++() { --state->left_; }
    bool operator!=(const Iterator&) const {
      if (state->left_ > 0) return true;
      state->seconds = now() - state->start_;
      return false;
    }
  };
  Iterator begin() {
    start_ = now();
    return {this};
  }
  Iterator end() { return {this}; }

  std::map<std::string, Counter> counters;
  double seconds = 0;

 private:
  static double now() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
  }
  std::vector<int64_t> arguments_;
  int64_t left_;
  double start_ = 0;
};

class Case {
 public:
  Case(const char* name, void (*function)(State&)) : name_(name), function_(function) {}
  Case* ArgNames(std::vector<std::string> names) { return names_ = std::move(names), this; }
  Case* Args(std::vector<int64_t> arguments) { return all_.push_back(std::move(arguments)), this; }
  Case* UseRealTime() { return this; }

  /// As many iterations as `min_time` takes; the time of one, and the counters.
  void run(const std::string& filter, double min_time) const {
    for (const auto& arguments : all_) {
      std::string name = name_;
      for (std::size_t i = 0; i < arguments.size(); ++i) {
        name += '/';
        if (i < names_.size()) name.append(names_[i]).append(1, ':');
        name += std::to_string(arguments[i]);
      }
      if (name.find(filter) == std::string::npos) continue;
      for (int64_t iterations = 1;;) {
        State state(arguments, iterations);
        function_(state);
        const double each = state.seconds / static_cast<double>(iterations);
        if (state.seconds < min_time && iterations < 1'000'000'000) {
          iterations = 1 + static_cast<int64_t>(1.2 * min_time / (each + 1e-9));
          continue;
        }
        std::printf("%-60s %12.1f ns %10ld", name.c_str(), each * 1e9, iterations);
        for (const auto& [label, counter] : state.counters) {
          const bool rate = counter.flags == Counter::kIsIterationInvariantRate;
          std::printf(" %s=%.4g", label.c_str(), rate ? counter.value / each : counter.value);
        }
        std::printf("\n");
        break;
      }
    }
  }

 private:
  std::string name_;
  void (*function_)(State&);
  std::vector<std::string> names_;
  std::vector<std::vector<int64_t> > all_;
};

inline std::vector<Case*>& cases() {
  static std::vector<Case*> all;
  return all;
}

inline Case* register_case(const char* name, void (*function)(State&)) {
  cases().push_back(new Case(name, function));  // for as long as the program runs
  return cases().back();
}

inline int run_all(int argc, char** argv) {
  std::string filter;
  double min_time = 0.5;
  for (int i = 1; i < argc; ++i) {
    const char* value = std::strchr(argv[i], '=');
    if (value && !std::strncmp(argv[i], "--benchmark_filter=", 19)) {
      filter = value + 1;
    } else if (value && !std::strncmp(argv[i], "--benchmark_min_time=", 21)) {
      min_time = std::atof(value + 1);
    } else {
      std::fprintf(stderr, "%s: no such option, must be --benchmark_filter= or --benchmark_min_time=\n", argv[i]);
      return 1;
    }
  }
  for (const Case* one : cases()) one->run(filter, min_time);
  return 0;
}

}  // namespace benchmark

#define ANABRANCH_BENCH_JOIN_(a, b) a##b
#define ANABRANCH_BENCH_JOIN(a, b) ANABRANCH_BENCH_JOIN_(a, b)
#define BENCHMARK(...)                                                              \
  static ::benchmark::Case* const ANABRANCH_BENCH_JOIN(benchmark_case_, __LINE__) = \
      ::benchmark::register_case(#__VA_ARGS__, __VA_ARGS__)
#define BENCHMARK_MAIN() \
  int main(int argc, char** argv) { return ::benchmark::run_all(argc, argv); }
#endif
