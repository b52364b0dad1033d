// What this machine can do at best, measured: the denominators of every percentage in the benchmarks.
//
// All are properties of the machine, not of this library's kernels: they use the detected instruction set, even where
// ANABRANCH_CPU_ISA or set_cpu_isa() has chosen a lower one for the kernels, and no code of the GEMM's loops.
#pragma once

#include <cstddef>
#include <cstdint>

namespace anabranch {

/// FLOP/s of `num_workers` threads together, a multiply-add counted as two: vector multiply-adds between registers,
/// with more independent sums than the units' latency can use. float32 counts FMA (a multiply and an add where the
/// baseline has none). bfloat16 counts the faster of that and vdpbf16ps, since a product of bfloat16 may use either.
/// Matrix units (AMX) are not counted: no kernel here uses them. All threads work at once, so that clocks and shared
/// cores are those of a full machine; each one's rate is over the time that it really ran, and the rates are added.
/// Takes `seconds`, in fifty stretches; the best one counts.
double peak_flops(bool bf16, int num_workers, double seconds);

/// Bytes/s that `num_workers` threads together read, front to back: one word of every cache line of `bytes` bytes on
/// huge pages, cut into one contiguous share per thread, `repeats` times; the fastest counts. A line is fetched whole
/// whatever is used of it, so this is the memory's rate as long as `bytes` is several times the last cache. Allocates
/// `bytes`; throws std::bad_alloc.
double read_bandwidth(std::size_t bytes, int num_workers, int repeats);

/// Cache lines/s that `num_workers` threads together fetch from random places of `bytes` bytes on huge pages: one word
/// of each, no address waiting for another, so that as many are under way as the cores can have. `lines` by each
/// thread, `repeats` times; the fastest counts. This bounds every lookup in more memory than the caches hold. Allocates
/// `bytes`, at most 2^38; throws std::bad_alloc.
double random_line_rate(std::size_t bytes, int64_t lines, int num_workers, int repeats);

/// `rounds` rounds of multiply-adds on this thread; returns the FLOPs done. One per instruction set, each in a
/// translation unit of its own that only a machine with it may enter.
double multiply_adds_portable(int64_t rounds);
double multiply_adds_avx2(int64_t rounds);
double multiply_adds_avx512(int64_t rounds);
double multiply_adds_avx512_bf16(int64_t rounds);

}  // namespace anabranch
