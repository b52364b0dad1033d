// What a step of NAT asks of a GPU, on the harness: states of a batch's nodes read, the pairs of its events encoded,
// the cache updated with what was read. Three launches; the results of each are those of the definitions on the same
// input.
#include "anabranch/temporal/ncache.cuh"
#include "anabranch/temporal/ncache_read.cuh"
#include "anabranch/temporal/pair_encode.cuh"
#include "guarded.hpp"

using namespace anabranch;

namespace {

constexpr int64_t nodes = 20, events = 8, hop1 = 5, hop2 = 3, slots = 1 + hop1 + hop2, size = 4, width = 6;
constexpr int64_t channels = 9, rows = 2 * events, count = rows * slots;

template <class To, class From>
To* as(From* from) {
  return reinterpret_cast<To*>(from);  // states as bits: the update copies them
}

void step() {
  std::mt19937 random(3);
  const auto any = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<unsigned>(n)); };
  std::vector<int64_t> keys, event_ids, times, batch[4], batch_nodes;
  for (int64_t at = 0; at < nodes * slots; ++at) {
    const bool occupied = any(3) > 0;
    keys.push_back(!occupied ? -1 : at % slots ? any(nodes) : at / slots);
    event_ids.push_back(occupied ? any(100) : -1), times.push_back(occupied ? any(1000) : -1);
  }
  for (int64_t e = 0; e < events; ++e) {
    batch[0].push_back(any(nodes)), batch[1].push_back(any(nodes));
    batch[2].push_back(1000 + e), batch[3].push_back(100 + e);
  }
  batch_nodes = batch[0];
  batch_nodes.insert(batch_nodes.end(), batch[1].begin(), batch[1].end());
  std::vector<float> states = random_values<float>(nodes * slots * size, random);
  const std::vector<float> node_features = random_values<float>(nodes * (width - 1), random);
  const std::vector<float> frequency{0.01f}, phase{0.5f}, weight = random_values<float>(3 * size * width, random);
  const std::vector<float> bias = random_values<float>(3 * size, random);
  const std::vector<float> weight_hh = random_values<float>(3 * size * size, random);
  const std::vector<float> encoder = random_values<float>(channels * size, random);
  const std::vector<float> code_table = random_values<float>(num_pair_codes * channels, random);
  std::vector<int32_t> codes(slots, 2);
  codes[0] = 1, std::fill(codes.begin() + 1 + hop1, codes.end(), 4);
  std::vector<int64_t> left(events), right(events);
  for (int64_t e = 0; e < events; ++e) left[e] = e, right[e] = events + e;

  Guarded<int64_t> row_keys(count), row_event_ids(count), row_times(count);
  Guarded<float> row_states(count * size), z(count * size), out(events * channels);
  Guarded<unsigned long long> stats(std::vector<unsigned long long>(9));
  const NCacheGather<float> gather{keys.data(),
                                   event_ids.data(),
                                   times.data(),
                                   states.data(),
                                   nodes,
                                   slots,
                                   size,
                                   batch_nodes.data(),
                                   rows,
                                   row_keys.data(),
                                   row_event_ids.data(),
                                   row_times.data(),
                                   row_states.data()};
  const NCacheRead<float> read{count,
                               row_keys.data(),
                               row_event_ids.data(),
                               row_times.data(),
                               row_states.data(),
                               size,
                               node_features.data(),
                               nodes,
                               width - 1,
                               nullptr,
                               0,
                               0,
                               frequency.data(),
                               phase.data(),
                               1,
                               weight.data(),
                               bias.data(),
                               weight_hh.data(),
                               bias.data(),
                               0,
                               1.0};
  const PairEncode<float> encode{
      {row_keys.data(), z.data(), codes.data(), left.data(), right.data(), rows, slots, size, events},
      encoder.data(),
      code_table.data(),
      channels,
      PairActivation::relu};
  const NCachePolicy policy{5, 0.5f};
  const NCacheLayout layout = NCacheLayout::of(hop1, hop2);
  const NCacheBatch<uint32_t> taken{batch[0].data(),      batch[1].data(),  batch[2].data(),
                                    batch[3].data(),      events,           row_keys.data(),
                                    row_event_ids.data(), row_times.data(), as<uint32_t>(z.data())};
  auto expected_keys = keys, expected_event_ids = event_ids, expected_times = times;
  auto expected_states = states;

  const int64_t before = simt::num_launches();
  ncache_read_cuda(gather, read, z.data(), nullptr);
  pair_encode_cuda(encode, out.data(), nullptr);
  ncache_update_cuda<uint32_t>(
      {keys.data(), event_ids.data(), times.data(), as<uint32_t>(states.data()), nodes, size, layout}, policy, taken,
      stats.data(), nullptr);
  const int64_t launches = simt::num_launches() - before;
  expect(launches == 3, "three launches: read, encode, update");

  std::vector<float> encoded(out.size());
  pair_encode_reference(encode, encoded.data());
  expect(spacing_error(out.values(), encoded) <= 64, "what the read gave, encoded");
  ncache_update_reference<uint32_t>({expected_keys.data(), expected_event_ids.data(), expected_times.data(),
                                     as<uint32_t>(expected_states.data()), nodes, size, layout},
                                    policy, taken);
  expect(keys == expected_keys && event_ids == expected_event_ids && times == expected_times &&
             same_bits(states, expected_states),
         "the cache, updated with what was read");
}

}  // namespace

int main() {
  simt::for_each_schedule(step);
  std::puts("nat_step: ok");
}
