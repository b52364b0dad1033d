// Hopper's building blocks on the harness: a small pipelined product is right for every layout of its operands, and
// each way of getting its synchronisation or its descriptors wrong is noticed.
#include <random>

#include "anabranch/core/cp_async.cuh"
#include "anabranch/core/tma.cuh"
#include "anabranch/core/wgmma.cuh"
#include "guarded.hpp"

using namespace anabranch;
using simt::Fault;
using simt::for_each_schedule;

namespace {

enum class Mistake {
  none,
  no_proxy_fence,
  no_copy_wait,
  producer_phase,
  consumer_phase,
  early_release,
  no_release,
  no_wgmma_fence,
  no_wgmma_wait,
  few_bytes,
  no_init_barrier,
  no_swizzle,
  wrong_stride,
  unaligned_tiles
};

constexpr int kStages = 2, kColumns = 128, kTileA = 64 * 128, kTileB = kColumns * 128, kStage = kTileA + kTileB;

// out [64, kColumns] = A B^T over `blocks` x 64 k. Threads 0 .. 127 bring A by cp.async (K-major) or thread 0 by TMA
// (MN-major), and thread 0 brings B by TMA; threads 128 .. 255 multiply.
template <class T, bool kAMn, bool kBMn, Mistake kMistake>
__global__ void product_kernel(const T* a, const TensorMap a_map, const TensorMap b_map, int blocks, float* out) {
  SharedMemory shared;
  const SharedArray<uint64_t> barriers = shared.take<uint64_t>(2 * kStages);
  const SharedArray<uint4> memory = shared.take<uint4>((kStages * kStage + kSwizzlePeriod) / 16);
  const SharedAddress full = shared_address(&barriers[0]), empty = shared_address(&barriers[kStages]);
  const SharedAddress tiles =
      align_up(shared_address(&memory[0]), kMistake == Mistake::unaligned_tiles ? 128 : kSwizzlePeriod);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    for (int s = 0; s < kStages; ++s) {
      mbarrier_init(full + 8 * s, kAMn ? 1 : 129);
      mbarrier_init(empty + 8 * s, kMistake == Mistake::no_release ? 129 : 128);
    }
    fence_mbarrier_init();
  }
  if (kMistake != Mistake::no_init_barrier) __syncthreads();
  if (thread < 128) {
    for (int i = 0; i < blocks; ++i) {
      const int stage = i % kStages;
      const SharedAddress tile = tiles + stage * kStage;
      mbarrier_wait(empty + 8 * stage, (i / kStages & 1) ^ (kMistake == Mistake::producer_phase ? 0 : 1));
      if (thread == 0) {
        const int bytes = kTileB + (kAMn ? kTileA : 0);
        mbarrier_arrive_expecting(full + 8 * stage, bytes - (kMistake == Mistake::few_bytes ? 128 : 0));
        if (kAMn) tma_load(tile, a_map, 0, i * 64, 0, full + 8 * stage);
        if (kBMn) {
          for (int c = 0; c < kColumns / 64; ++c)
            tma_load(tile + kTileA + c * 64 * 128, b_map, c * 64, i * 64, 0, full + 8 * stage);
        } else {
          tma_load(tile + kTileA, b_map, i * 64, 0, 0, full + 8 * stage);
        }
      }
      if (!kAMn) {
        for (int p = thread; p < 64 * 8; p += 128) {
          const int row = p / 8, piece = p % 8;
          const uint32_t offset =
              kMistake == Mistake::no_swizzle ? row * 128 + piece * 16 : swizzled_offset(row, piece);
          cp_async_16(tile + offset, a + row * blocks * 64 + i * 64 + piece * 8, true);
        }
        cp_async_commit();
        if (kMistake != Mistake::no_copy_wait) cp_async_wait<0>();
        if (kMistake != Mistake::no_proxy_fence) fence_proxy_async();
        mbarrier_arrive(full + 8 * stage);
      }
    }
  } else {
    float sums[kColumns / 2];
    for (int i = 0; i < blocks; ++i) {
      const int stage = i % kStages;
      const SharedAddress tile = tiles + stage * kStage;
      mbarrier_wait(full + 8 * stage, (i / kStages & 1) ^ (kMistake == Mistake::consumer_phase ? 1 : 0));
      uint64_t left = wgmma_tile(tile, kAMn, 64 * 128);
      const uint64_t right = wgmma_tile(tile + kTileA, kBMn, 64 * 128);
      if (kMistake == Mistake::wrong_stride) left += uint64_t{64} << 32;
      if (kMistake != Mistake::no_wgmma_fence) wgmma_fence();
      for (int step = 0; step < 4; ++step) {
        wgmma<T, kColumns, kAMn, kBMn>(sums, left + step * wgmma_step(kAMn), right + step * wgmma_step(kBMn),
                                       i + step > 0);
      }
      wgmma_commit();
      if (kMistake == Mistake::early_release) mbarrier_arrive(empty + 8 * stage);
      if (kMistake != Mistake::no_wgmma_wait) wgmma_wait<0>();
      if (kMistake != Mistake::early_release) mbarrier_arrive(empty + 8 * stage);
    }
    for (int r = 0; r < kColumns / 2; ++r)
      out[fragment_row(thread - 128, r) * kColumns + fragment_column(thread - 128, r)] = sums[r];
  }
}

constexpr int kBlocks = 5, kDepth = kBlocks * 64;

/// The product of random matrices; true if it is right.
template <class T, bool kAMn, bool kBMn, Mistake kMistake>
bool product_is_right() {
  std::mt19937 random(7);
  Guarded<T> a(random_values<T>(64 * kDepth, random)), b(random_values<T>(kColumns * kDepth, random));
  Guarded<float> out(64 * kColumns);
  // K-major: [line, k]; MN-major: [k, line]
  const auto view = [](const T* data, bool mn_major, int lines) {
    return mn_major ? TensorView<T>{data, lines, kDepth, 1, lines, int64_t{lines} * kDepth, 64}
                    : TensorView<T>{data, kDepth, lines, 1, kDepth, int64_t{lines} * kDepth, lines};
  };
  launch(product_kernel<T, kAMn, kBMn, kMistake>, 1, 256,
         shared_bytes<uint64_t, uint4>(2 * kStages, (kStages * kStage + kSwizzlePeriod) / 16), nullptr, a.data(),
         make_tensor_map(view(a.data(), kAMn, 64)), make_tensor_map(view(b.data(), kBMn, kColumns)), kBlocks,
         out.data());
  const auto element = [](const T* data, bool mn_major, int lines, int line, int k) {
    return double(static_cast<float>(data[mn_major ? k * lines + line : line * kDepth + k]));
  };
  double largest = 0;
  for (int row = 0; row < 64; ++row) {
    for (int column = 0; column < kColumns; ++column) {
      double sum = 0;
      for (int k = 0; k < kDepth; ++k)
        sum += element(a.data(), kAMn, 64, row, k) * element(b.data(), kBMn, kColumns, column, k);
      const double error = std::abs(out.data()[row * kColumns + column] - sum);
      largest = error <= largest ? largest : error;
    }
  }
  return largest < 1e-3;
}

template <Mistake kMistake>
void expect_noticed(Fault::Kind kind) {
  for_each_schedule([&] { expect_fault(kind, [] { product_is_right<bfloat16, false, false, kMistake>(); }); });
}

void test_mistakes() {
  expect_noticed<Mistake::no_proxy_fence>(Fault::race);
  expect_noticed<Mistake::no_copy_wait>(Fault::race);
  expect_noticed<Mistake::early_release>(Fault::race);
  expect_noticed<Mistake::no_wgmma_fence>(Fault::race);
  expect_noticed<Mistake::no_wgmma_wait>(Fault::race);
  expect_noticed<Mistake::producer_phase>(Fault::divergence);
  expect_noticed<Mistake::no_release>(Fault::divergence);
  expect_noticed<Mistake::few_bytes>(Fault::divergence);
  expect_noticed<Mistake::unaligned_tiles>(Fault::misaligned);
  for_each_schedule([] {
    expect(!product_is_right<bfloat16, false, false, Mistake::no_swizzle>(), "rows that are not swizzled");
    expect(!product_is_right<bfloat16, false, false, Mistake::wrong_stride>(), "a descriptor with the wrong stride");
    // What these meet first depends on the order.
    for (const auto kernel : {+[] { product_is_right<bfloat16, false, false, Mistake::consumer_phase>(); },
                              +[] { product_is_right<bfloat16, false, false, Mistake::no_init_barrier>(); }}) {
      bool noticed = false;
      try {
        kernel();
      } catch (const Fault&) {
        noticed = true;
      }
      expect(noticed, "a wait for the wrong phase, an mbarrier in use before it is one");
    }
  });
}

template <class T>
void test_layouts() {
  for_each_schedule([] {
    expect(product_is_right<T, false, false, Mistake::none>(), "K-major A and B");
    expect(product_is_right<T, false, true, Mistake::none>(), "K-major A, N-major B");
    expect(product_is_right<T, true, false, Mistake::none>(), "M-major A, K-major B");
    expect(product_is_right<T, true, true, Mistake::none>(), "M-major A, N-major B");
  });
}

// Copies one box to shared memory and lets a product with the identity read it back.
template <class T>
__global__ void box_kernel(const TensorMap map, const TensorMap identity, int column, int line, int plane, float* out) {
  SharedMemory shared;
  const SharedArray<uint64_t> barrier = shared.take<uint64_t>(1);
  const SharedArray<uint4> memory = shared.take<uint4>((2 * kTileA + kSwizzlePeriod) / 16);
  const SharedAddress full = shared_address(&barrier[0]), tile = align_up(shared_address(&memory[0]), kSwizzlePeriod);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    mbarrier_init(full, 1);
    fence_mbarrier_init();
  }
  __syncthreads();
  if (thread == 0) {
    mbarrier_arrive_expecting(full, 2 * kTileA);
    tma_load(tile, map, column, line, plane, full);
    tma_load(tile + kTileA, identity, 0, 0, 0, full);
  }
  mbarrier_wait(full, 0);
  float sums[32];
  wgmma_fence();
  for (int step = 0; step < 4; ++step) {
    wgmma<T, 64, false, false>(sums, wgmma_tile(tile, false, 0) + step * wgmma_step(false),
                               wgmma_tile(tile + kTileA, false, 0) + step * wgmma_step(false), step > 0);
  }
  wgmma_commit();
  wgmma_wait<0>();
  for (int r = 0; r < 32; ++r) out[fragment_row(thread, r) * 64 + fragment_column(thread, r)] = sums[r];
}

void test_boxes() {
  constexpr int kPlanes = 3, kLines = 70, kWidth = 72, kStride = 80;
  std::vector<half> values(kPlanes * kLines * kStride), identity(64 * 64, half(0.0f));
  for (size_t i = 0; i < values.size(); ++i) values[i] = half(static_cast<float>(i % 1021));
  for (int i = 0; i < 64; ++i) identity[i * 65] = half(1.0f);
  Guarded<half> tensor(values), unit(identity);
  const auto map =
      make_tensor_map(TensorView<half>{tensor.data(), kWidth, kLines, kPlanes, kStride, kLines * kStride, 64});
  const auto unit_map = make_tensor_map(TensorView<half>{unit.data(), 64, 64, 1, 64, 64 * 64, 64});
  for (const auto& [column, line, plane] : {std::array{0, 0, 0}, {64, 0, 1}, {16, 60, 2}, {-8, -3, 1}, {0, 0, 3}}) {
    Guarded<float> out(64 * 64);
    launch(box_kernel<half>, 1, 128, shared_bytes<uint64_t, uint4>(1, (2 * kTileA + kSwizzlePeriod) / 16), nullptr, map,
           unit_map, column, line, plane, out.data());
    for (int r = 0; r < 64; ++r) {
      for (int c = 0; c < 64; ++c) {
        const int x = column + c, y = line + r;
        const bool inside = x >= 0 && x < kWidth && y >= 0 && y < kLines && plane < kPlanes;
        const float expected = inside ? static_cast<float>(values[(plane * kLines + y) * kStride + x]) : 0.0f;
        expect(out.data()[r * 64 + c] == expected, "a box: what lies outside the tensor is zero");
      }
    }
  }
}

void test_bad_maps() {
  alignas(16) static half data[64];
  const TensorView<half> good{data, 8, 8, 1, 8, 64, 8};
  make_tensor_map(good);
  const auto refused = [](TensorView<half> view) {
    try {
      make_tensor_map(view);
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  auto shifted = good, odd = good, empty = good, tall = good;
  shifted.data += 1;
  odd.line_stride = 9;
  empty.lines = 0;
  tall.box_lines = 257;
  expect(refused(shifted) && refused(odd) && refused(empty) && refused(tall), "a tensor that TMA cannot describe");
}

}  // namespace

int main() {
  test_layouts<bfloat16>();
  test_layouts<half>();
  test_mistakes();
  test_boxes();
  test_bad_maps();
  std::puts("wgmma: ok");
}
