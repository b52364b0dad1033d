// The N-cache's gather, read and backward on the harness against the definition in double: every dtype, with and
// without each kind of feature, weights that fit in shared memory and that do not, more states than a block has
// threads, nodes and events that do not exist, each gradient alone.
#include "anabranch/temporal/ncache_read_backward.cuh"
#include "anabranch/temporal/ncache_read_reference.hpp"
#include "guarded.hpp"

using namespace anabranch;
using simt::for_each_schedule;

namespace {

struct Shape {
  int64_t nodes, slots, rows, state_size, node_width, edge_width, events, time_width;
};

std::vector<double> wide(const auto& values) {
  std::vector<double> out;
  for (const auto value : values) out.push_back(static_cast<accumulate_t<std::decay_t<decltype(value)>>>(value));
  return out;
}

template <class T>
void expect_close(const std::vector<T>& given, const std::vector<double>& exact, double units, const char* what) {
  std::vector<T> rounded;
  for (const double value : exact) rounded.push_back(T(static_cast<accumulate_t<T>>(value)));
  expect(spacing_error(given, rounded) <= units, what);
}

template <class T>
struct Case {
  using Sum = accumulate_t<T>;
  Shape shape;
  std::mt19937 random{7};
  std::vector<int64_t> keys, event_ids, times, nodes;
  std::vector<T> states, node_features, edge_features;
  std::vector<Sum> parameters[6];  // frequency, phase, weight, bias, weight_hh, bias_hh

  explicit Case(const Shape& shape) : shape(shape) {
    const int64_t S = shape.slots, F = shape.state_size;
    const int64_t width = shape.node_width + shape.edge_width + shape.time_width;
    const auto any = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<unsigned>(n)); };
    for (int64_t at = 0; at < shape.nodes * S; ++at) {
      const bool occupied = at / S != 1 && any(3) > 0;  // node 1 never had an event
      keys.push_back(!occupied ? -1 : at % S ? any(shape.nodes) : at / S);
      event_ids.push_back(occupied ? any(shape.events + 2) : -1);  // two of them have no features
      times.push_back(occupied ? any(1000) - 500 : -1);
    }
    for (int64_t row = 0; row < shape.rows; ++row) nodes.push_back(any(shape.nodes));
    if (shape.rows > 2) nodes[0] = 1, nodes[2] = shape.nodes;  // the latter does not exist
    states = random_values<T>(shape.nodes * S * F, random);
    node_features = random_values<T>(shape.nodes * shape.node_width, random);
    edge_features = random_values<T>(shape.events * shape.edge_width, random);
    const int64_t counts[6] = {shape.time_width, shape.time_width, 3 * F * width, 3 * F, 3 * F * F, 3 * F};
    for (int i = 0; i < 6; ++i) {
      parameters[i] = random_values<Sum>(counts[i], random);
      for (Sum& value : parameters[i]) value *= Sum(0.25);
    }
  }
};

/// The problem of some rows; all pointers but those of the rows are of the case (or of its copy in double).
template <class T>
NCacheRead<T> problem_of(const Case<T>& in, const int64_t* keys, const int64_t* event_ids, const int64_t* times,
                         const T* states) {
  const Shape& s = in.shape;
  const auto& p = in.parameters;
  return {s.rows * s.slots,
          keys,
          event_ids,
          times,
          states,
          s.state_size,
          in.node_features.data(),
          s.nodes,
          s.node_width,
          in.edge_features.data(),
          s.events,
          s.edge_width,
          p[0].data(),
          p[1].data(),
          s.time_width,
          p[2].data(),
          p[3].data(),
          p[4].data(),
          p[5].data(),
          3,
          0.01};
}

template <class T>
void check_shape(const Shape& shape) {
  using Sum = accumulate_t<T>;
  Case<T> in(shape);
  const int64_t count = shape.rows * shape.slots, F = shape.state_size;
  std::vector<int64_t> row_keys(count), row_event_ids(count), row_times(count);
  std::vector<T> row_states(count * F);
  NCacheGather<T> gather{in.keys.data(),
                         in.event_ids.data(),
                         in.times.data(),
                         in.states.data(),
                         shape.nodes,
                         shape.slots,
                         F,
                         in.nodes.data(),
                         shape.rows,
                         row_keys.data(),
                         row_event_ids.data(),
                         row_times.data(),
                         row_states.data()};
  ncache_gather_reference(gather);

  Case<double> exact_case(shape);
  exact_case.node_features = wide(in.node_features), exact_case.edge_features = wide(in.edge_features);
  for (int i = 0; i < 6; ++i) exact_case.parameters[i] = wide(in.parameters[i]);
  const std::vector<double> states64 = wide(row_states);
  const NCacheRead<double> exact =
      problem_of(exact_case, row_keys.data(), row_event_ids.data(), row_times.data(), states64.data());
  std::vector<double> z64(count * F);
  ncache_read_reference(exact, z64.data());

  Guarded<int64_t> keys(count), event_ids(count), times(count);
  Guarded<T> states(count * F), z(count * F);
  gather.row_keys = keys.data(), gather.row_event_ids = event_ids.data(), gather.row_times = times.data();
  gather.row_states = states.data();
  const NCacheRead<T> problem = problem_of(in, keys.data(), event_ids.data(), times.data(), states.data());
  const auto same_rows = [&](const char* what) {
    expect(keys.values() == row_keys && event_ids.values() == row_event_ids && times.values() == row_times &&
               same_bits(states.values(), row_states),
           what);
  };
  ncache_gather_cuda(gather, nullptr);
  same_rows("gather");
  std::fill_n(keys.data(), count, int64_t{99});
  ncache_read_cuda(gather, problem, z.data(), nullptr);
  same_rows("the read's rows");
  const double units = std::is_same_v<T, float> ? 30 : std::is_same_v<T, double> ? 100 : 2;
  expect_close(z.values(), z64, units, "z");

  const std::vector<T> dz = random_values<T>(count * F, in.random);
  const std::vector<double> dz64 = wide(dz);
  const int64_t width = exact.width(), table = shape.nodes * shape.slots * F;
  const int64_t sizes[9] = {table,
                            shape.nodes * shape.node_width,
                            shape.events * shape.edge_width,
                            shape.time_width,
                            shape.time_width,
                            3 * F * width,
                            3 * F,
                            3 * F * F,
                            3 * F};
  std::vector<double> exact_of[9];
  for (int i = 0; i < 9; ++i) exact_of[i].resize(sizes[i]);
  std::vector<double> dstates64(count * F);
  ncache_read_backward_reference(
      exact, dz64.data(),
      {dstates64.data(), exact_of[1].data(), exact_of[2].data(), exact_of[3].data(), exact_of[4].data(),
       exact_of[5].data(), exact_of[6].data(), exact_of[7].data(), exact_of[8].data()});
  for (int64_t at = 0; at < count * F; ++at) {
    const int64_t node = in.nodes[at / (shape.slots * F)];
    if (node < shape.nodes) exact_of[0][node * shape.slots * F + at % (shape.slots * F)] += dstates64[at];
  }
  const char* names[9] = {"states", "node_features", "edge_features", "frequency", "phase",
                          "weight", "bias",          "weight_hh",     "bias_hh"};
  for (const int wanted : {0b111111111, 0b000000010, 0b001000001}) {
    // Two gradients of tables and more: in launches of five slots, all of them in one otherwise.
    const int64_t chunk = wanted == 0b111111111 ? 5 : node_warp_chunk;
    std::vector<Sum> results[9];
    Sum* to[9];
    for (int i = 0; i < 9; ++i) {
      results[i].assign(static_cast<size_t>(sizes[i]), i < 3 ? Sum(0) : Sum(77));
      to[i] = wanted >> i & 1 ? results[i].data() : nullptr;
    }
    Guarded<Sum> workspace(ncache_read_backward_workspace(problem, wanted & 1));
    ncache_read_backward_cuda(problem, in.nodes.data(), shape.rows, dz.data(),
                              {to[0], to[1], to[2], to[3], to[4], to[5], to[6], to[7], to[8]}, workspace.data(),
                              nullptr, chunk);
    for (int i = 0; i < 9; ++i) {
      // In units of the largest: sums of many slots cancel, and tau makes frequency's large.
      double largest = 1;
      for (const double value : exact_of[i]) largest = std::max(largest, std::abs(value));
      if (to[i]) expect_close(results[i], exact_of[i], 100 * largest, names[i]);
    }
  }
}

template <class T>
void check_dtype() {
  check_shape<T>({5, 7, 9, 4, 5, 3, 6, 2});
  check_shape<T>({3, 2, 3, 1, 0, 0, 1, 0});
}

}  // namespace

int main() {
  for_each_schedule([] {
    check_dtype<float>();
    check_dtype<bfloat16>();
    check_shape<float>({4, 6, 0, 2, 3, 0, 1, 1});
  });
  check_dtype<double>();
  check_dtype<half>();
  check_shape<float>({6, 33, 2, 6, 70, 0, 1, 1});   // more states than threads, two stages, empty features of edges
  check_shape<double>({3, 5, 2, 7, 150, 3, 4, 1});  // weights that do not fit
  std::puts("ncache_read: ok");
}
