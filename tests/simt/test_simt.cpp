// The harness itself: kernels that are wrong on purpose must be found out, and their corrected twins must pass.
#include <algorithm>
#include <numeric>
#include <vector>

#include "expect.hpp"

using namespace anabranch;
using simt::Fault;
using simt::for_each_schedule;

namespace {

// Reverses a block's values through shared memory.
template <bool barrier>
__global__ void reverse_kernel(const int* in, int* out, int n) {
  SharedMemory shared;
  SharedArray<int> tile = shared.take<int>(n);
  const int t = static_cast<int>(threadIdx.x);
  tile[t] = in[t];
  if (barrier) __syncthreads();
  out[t] = tile[n - 1 - t];
}

// A sum tree; the variant without barriers between its levels is the classic mistake.
template <bool barrier>
__global__ void tree_sum_kernel(const int* in, int* out) {
  SharedMemory shared;
  SharedArray<int> partial = shared.take<int>(blockDim.x);
  const int t = static_cast<int>(threadIdx.x);
  partial[t] = in[t];
  __syncthreads();
  for (int half = static_cast<int>(blockDim.x) / 2; half > 0; half /= 2) {
    if (t < half) partial[t] += partial[t + half];
    if (barrier) __syncthreads();
  }
  if (t == 0) *out = partial[0];
}

// Reads a tile, then overwrites it for the next round: the second barrier of the loop is the one people forget.
template <bool second_barrier>
__global__ void rounds_kernel(const int* in, int* out, int rounds) {
  SharedMemory shared;
  SharedArray<int> tile = shared.take<int>(blockDim.x);
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  int sum = 0;
  for (int round = 0; round < rounds; ++round) {
    tile[t] = in[round * n + t];
    __syncthreads();
    sum += tile[(t + 1) % n];
    if (second_barrier) __syncthreads();
  }
  out[t] = sum;
}

// Neighbours in one warp exchange values; __syncwarp() is enough within a warp, a shuffle is not.
enum class Between { nothing, shuffle, syncwarp };
template <Between between>
__global__ void warp_exchange_kernel(int* out) {
  SharedMemory shared;
  SharedArray<int> tile = shared.take<int>(blockDim.x);
  const int t = static_cast<int>(threadIdx.x);
  tile[t] = t * 10;
  if (between == Between::shuffle) __shfl_sync(kAllLanes, t, 0);
  if (between == Between::syncwarp) __syncwarp();
  out[t] = tile[t ^ 1];
}

// Half warps synchronise among themselves only.
__global__ void half_warp_kernel(int* out, int partner) {
  SharedMemory shared;
  SharedArray<int> tile = shared.take<int>(blockDim.x);
  const int t = static_cast<int>(threadIdx.x);
  tile[t] = t;
  __syncwarp(t % 32 < 16 ? 0xffffu : 0xffff0000u);
  out[t] = tile[t ^ partner];
}

__global__ void index_kernel(int* out, int count, int index) {
  SharedMemory shared;
  SharedArray<int> tile = shared.take<int>(count);
  SharedArray<int> behind = shared.take<int>(count);
  behind[0] = 1;
  tile[index] = 7;
  *out = tile[index];
}

__global__ void take_kernel(int count) {
  SharedMemory shared;
  SharedArray<double> tile = shared.take<double>(count);
  tile[0] = 1;
}

__global__ void uninitialized_kernel(int* out) {
  SharedMemory shared;
  SharedArray<int> tile = shared.take<int>(2);
  tile[0] = 1;
  *out = tile[1];
}

enum class Divergence { none, branch, early_exit, missing_lane, wrong_mask, mixed, foreign_source };
template <Divergence divergence>
__global__ void divergence_kernel(int* out) {
  const int t = static_cast<int>(threadIdx.x);
  if (divergence == Divergence::branch) {
    if (t % 2) __syncthreads();
  } else if (divergence == Divergence::early_exit) {
    if (t == 5) return;
  } else if (divergence == Divergence::missing_lane) {
    if (t != 3) __syncwarp();
  } else if (divergence == Divergence::wrong_mask) {
    __syncwarp(t < 16 ? 0xffffu : kAllLanes);
  } else if (divergence == Divergence::mixed) {
    if (t % 2)
      __syncwarp();
    else
      __ballot_sync(kAllLanes, 1);
  } else if (divergence == Divergence::foreign_source) {
    if (t % 32 < 16) __shfl_sync(0xffffu, t, 20);
  }
  __syncthreads();
  out[t] = t;
}

__global__ void collectives_kernel(const int* in, int* out, double* doubles) {
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, n = static_cast<int>(blockDim.x);
  const int x = in[t];
  int* row = out + t;
  row[0 * n] = __shfl_sync(kAllLanes, x, 5);
  row[1 * n] = __shfl_sync(kAllLanes, x, lane + 1, 8);
  row[2 * n] = __shfl_up_sync(kAllLanes, x, 3);
  row[3 * n] = __shfl_up_sync(kAllLanes, x, 1, 16);
  row[4 * n] = __shfl_down_sync(kAllLanes, x, 2);
  row[5 * n] = __shfl_down_sync(kAllLanes, x, 1, 4);
  row[6 * n] = __shfl_xor_sync(kAllLanes, x, 16);
  row[7 * n] = __shfl_xor_sync(kAllLanes, x, 3);
  row[8 * n] = static_cast<int>(__ballot_sync(kAllLanes, x % 3 == 0));
  row[9 * n] = __any_sync(kAllLanes, x == 4) + 2 * __all_sync(kAllLanes, x < 1000);
  row[10 * n] = static_cast<int>(__match_any_sync(kAllLanes, x % 4));
  // Lanes that left early take no part; the others name themselves.
  row[11 * n] = -1;
  if (lane % 2) row[11 * n] = static_cast<int>(__ballot_sync(0xaaaaaaaau, lane > 15));
  doubles[t] = __shfl_xor_sync(kAllLanes, x + 0.5, 1);
}

__global__ void atomics_kernel(int* total, int* largest, int* smallest, unsigned* tickets, int* histogram, int* lock,
                               int* loser) {
  SharedMemory shared;
  SharedArray<int> bins = shared.take<int>(4);
  const int t = static_cast<int>(threadIdx.x);
  const int id = static_cast<int>(blockIdx.x * blockDim.x) + t;
  if (t < 4) bins[t] = 0;
  __syncthreads();
  atomicAdd(&bins[id % 4], 1);
  atomicAdd(total, id);
  atomicMax(largest, id);
  atomicMin(smallest, -id);
  tickets[atomicAdd(&tickets[0], 1u) + 1] = static_cast<unsigned>(id);
  if (atomicCAS(lock, 0, 1 + id) != 0) atomicExch(loser, id);
  __syncthreads();
  if (t < 4) atomicAdd(&histogram[t], static_cast<int>(bins[t]));
}

template <bool barrier>
__global__ void atomic_then_read_kernel(int* out) {
  SharedMemory shared;
  SharedArray<int> count = shared.take<int>(1);
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  atomicAdd(&count[0], 1);
  if (barrier) __syncthreads();
  out[threadIdx.x] = count[0];
}

__global__ void index_names_kernel(int* out) {
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  atomicAdd(&out[block * blockDim.x * blockDim.y * blockDim.z + thread], 1);
}

// One stretch of shared memory under two types, one after the other.
__global__ void reuse_kernel(float* out) {
  SharedMemory shared, again = shared;
  SharedArray<int> integers = shared.take<int>(blockDim.x);
  SharedArray<float> floats = again.take<float>(blockDim.x);
  const int t = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  integers[t] = t;
  __syncthreads();
  const int next = integers[(t + 1) % n];
  __syncthreads();
  floats[t] = static_cast<float>(next);
  __syncthreads();
  out[t] = floats[(t + 1) % n];
}

void test_missing_barriers() {
  std::vector<int> in(64), out(64);
  std::iota(in.begin(), in.end(), 1);
  for_each_schedule([&] {
    const size_t bytes = shared_bytes<int>(64);
    expect_fault(Fault::race, [&] { launch(tree_sum_kernel<false>, 1, 64, bytes, nullptr, in.data(), out.data()); });
    expect_fault(Fault::race, [&] { launch(rounds_kernel<false>, 1, 32, bytes, nullptr, in.data(), out.data(), 2); });
    expect_fault(Fault::race, [&] { launch(atomic_then_read_kernel<false>, 1, 64, bytes, nullptr, out.data()); });

    launch(reverse_kernel<true>, 1, 64, bytes, nullptr, in.data(), out.data(), 64);
    for (int i = 0; i < 64; ++i) expect(out[i] == 64 - i, "reversed");
    launch(tree_sum_kernel<true>, 1, 64, bytes, nullptr, in.data(), out.data());
    expect(out[0] == 64 * 65 / 2, "sum of a tree");
    launch(rounds_kernel<true>, 1, 32, bytes, nullptr, in.data(), out.data(), 2);
    for (int i = 0; i < 32; ++i) expect(out[i] == in[(i + 1) % 32] + in[32 + (i + 1) % 32], "sum over rounds");
    launch(atomic_then_read_kernel<true>, 1, 64, bytes, nullptr, out.data());
    expect(out[0] == 64 && out[63] == 64, "every thread sees the final count");

    // Without its barrier, reverse() is found out as a race or as a read of what is not written yet, by the order.
    bool found = false;
    try {
      launch(reverse_kernel<false>, 1, 64, bytes, nullptr, in.data(), out.data(), 64);
    } catch (const Fault& fault) {
      found = fault.kind == Fault::race || fault.kind == Fault::uninitialized;
    }
    expect(found, "a missing barrier went unnoticed");
  });
}

void test_order_within_a_warp() {
  std::vector<int> out(64);
  const size_t bytes = shared_bytes<int>(64);
  const auto noticed = [&](void (*kernel)(int*)) {
    try {
      launch(kernel, 1, 64, bytes, nullptr, out.data());
    } catch (const Fault& fault) {
      return fault.kind == Fault::race || fault.kind == Fault::uninitialized;
    }
    return false;
  };
  for_each_schedule([&] {
    expect(noticed(warp_exchange_kernel<Between::nothing>), "nothing orders the lanes");
    expect(noticed(warp_exchange_kernel<Between::shuffle>), "a shuffle orders no memory");
    expect(!noticed(warp_exchange_kernel<Between::syncwarp>), "__syncwarp() orders the lanes");
    for (int i = 0; i < 64; ++i) expect(out[i] == (i ^ 1) * 10, "exchanged within the warp");

    launch(half_warp_kernel, 1, 64, bytes, nullptr, out.data(), 8);
    for (int i = 0; i < 64; ++i) expect(out[i] == (i ^ 8), "exchanged within the half warp");
    expect(noticed([](int* o) { half_warp_kernel(o, 16); }), "half warps are not ordered with each other");
  });
}

void test_indices() {
  int out = 0;
  const size_t bytes = shared_bytes<int, int>(5, 5);
  launch(index_kernel, 1, 1, bytes, nullptr, &out, 5, 4);
  expect(out == 7, "the last element is usable");
  expect_fault(Fault::out_of_range, [&] { launch(index_kernel, 1, 1, bytes, nullptr, &out, 5, 5); });
  expect_fault(Fault::out_of_range, [&] { launch(index_kernel, 1, 1, bytes, nullptr, &out, 5, -1); });
  launch(take_kernel, 1, 1, shared_bytes<double>(3), nullptr, 3);
  expect_fault(Fault::out_of_range, [&] { launch(take_kernel, 1, 1, shared_bytes<double>(2), nullptr, 3); });
  expect_fault(Fault::uninitialized, [&] { launch(uninitialized_kernel, 1, 1, 16, nullptr, &out); });
  std::vector<float> floats(40);
  launch(reuse_kernel, 1, 40, shared_bytes<float>(40), nullptr, floats.data());
  for (int i = 0; i < 40; ++i) expect(floats[i] == static_cast<float>((i + 2) % 40), "one stretch under two types");
}

void test_divergence() {
  std::vector<int> out(64);
  const auto run = [&](void (*kernel)(int*)) { launch(kernel, 1, 64, 0, nullptr, out.data()); };
  for_each_schedule([&] {
    run(divergence_kernel<Divergence::none>);
    expect_fault(Fault::divergence, [&] { run(divergence_kernel<Divergence::branch>); });
    expect_fault(Fault::divergence, [&] { run(divergence_kernel<Divergence::early_exit>); });
    expect_fault(Fault::divergence, [&] { run(divergence_kernel<Divergence::missing_lane>); });
    expect_fault(Fault::invalid_collective, [&] { run(divergence_kernel<Divergence::mixed>); });
    expect_fault(Fault::invalid_collective, [&] { run(divergence_kernel<Divergence::foreign_source>); });
    expect_fault(Fault::divergence, [&] { run(divergence_kernel<Divergence::wrong_mask>); });
  });
}

void test_collectives() {
  constexpr int n = 64;
  std::vector<int> in(n), out(12 * n);
  std::vector<double> doubles(n);
  for (int i = 0; i < n; ++i) in[i] = i * 7 % 23;
  for_each_schedule([&] {
    launch(collectives_kernel, 1, n, 0, nullptr, in.data(), out.data(), doubles.data());
    for (int t = 0; t < n; ++t) {
      const int* warp = in.data() + t / 32 * 32;
      const int lane = t % 32;
      unsigned thirds = 0, same = 0;
      bool any = false;
      for (int i = 0; i < 32; ++i) {
        thirds |= static_cast<unsigned>(warp[i] % 3 == 0) << i;
        same |= static_cast<unsigned>(warp[i] % 4 == in[t] % 4) << i;
        any |= warp[i] == 4;
      }
      const int expected[12] = {warp[5],
                                warp[lane / 8 * 8 + (lane + 1) % 8],
                                warp[lane < 3 ? lane : lane - 3],
                                warp[lane % 16 == 0 ? lane : lane - 1],
                                warp[lane > 29 ? lane : lane + 2],
                                warp[lane % 4 == 3 ? lane : lane + 1],
                                warp[lane ^ 16],
                                warp[lane ^ 3],
                                static_cast<int>(thirds),
                                any + 2,
                                static_cast<int>(same),
                                lane % 2 ? static_cast<int>(0xaaaa0000u) : -1};
      for (int row = 0; row < 12; ++row) expect(out[row * n + t] == expected[row], "a warp collective");
      expect(doubles[t] == warp[lane ^ 1] + 0.5, "a shuffle of doubles");
    }
  });
  expect(__popc(0xf0f0u) == 8 && __ffs(0) == 0 && __ffs(8) == 4 && __clz(1) == 31 && __clz(0) == 32, "bit counts");
}

void test_atomics() {
  constexpr int blocks = 3, threads = 96, n = blocks * threads;
  for_each_schedule([&] {
    int total = 0, largest = -1, smallest = 1, lock = 0, loser = -1;
    std::vector<unsigned> tickets(n + 1);
    std::vector<int> histogram(4);
    launch(atomics_kernel, blocks, threads, shared_bytes<int>(4), nullptr, &total, &largest, &smallest, tickets.data(),
           histogram.data(), &lock, &loser);
    expect(total == n * (n - 1) / 2 && largest == n - 1 && smallest == 1 - n, "sum, maximum and minimum");
    expect(tickets[0] == n, "every thread drew a ticket");
    std::sort(tickets.begin() + 1, tickets.end());
    for (int i = 0; i < n; ++i) expect(tickets[i + 1] == static_cast<unsigned>(i), "each ticket was drawn once");
    for (const int bin : histogram) expect(bin == n / 4, "a histogram in shared memory");
    expect(lock >= 1 && lock <= n && loser >= 0 && loser != lock - 1, "one thread won");
  });
}

void test_launch() {
  std::vector<int> out(2 * 3 * 2 * 3 * 2 * 4);
  launch(index_names_kernel, dim3(2, 3, 2), dim3(3, 2, 4), 0, nullptr, out.data());
  for (const int count : out) expect(count == 1, "every thread ran once");
  const auto refused = [&](dim3 grid, dim3 block, size_t bytes) {
    try {
      launch(index_names_kernel, grid, block, bytes, nullptr, out.data());
    } catch (const std::runtime_error&) {
      return true;
    }
    return false;
  };
  expect(refused(0, 32, 0) && refused(1, 0, 0) && refused(1, 1025, 0) && refused(dim3(1, 65536), 32, 0) &&
             refused(1, 32, 228 * 1024),
         "a launch that CUDA refuses is refused here");
}

}  // namespace

int main() {
  test_missing_barriers();
  test_order_within_a_warp();
  test_indices();
  test_divergence();
  test_collectives();
  test_atomics();
  test_launch();
  std::puts("simt: ok");
}
