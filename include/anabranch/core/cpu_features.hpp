// Which instruction set the CPU kernels use: detected once, lowered on request.
#pragma once

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "anabranch/core/check.hpp"

namespace anabranch {

/// Ordered: each one can run all code of those before it.
enum class CpuIsa { portable, avx2, avx512, avx512_bf16 };

inline constexpr CpuIsa all_cpu_isas[] = {CpuIsa::portable, CpuIsa::avx2, CpuIsa::avx512, CpuIsa::avx512_bf16};

constexpr std::string_view cpu_isa_name(CpuIsa isa) {
  constexpr std::string_view names[] = {"portable", "avx2", "avx512", "avx512_bf16"};
  return names[static_cast<int>(isa)];
}

/// The highest instruction set that the processor and the operating system support.
inline CpuIsa detected_cpu_isa() {
#if defined(__x86_64__)
  static const CpuIsa detected = [] {
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("f16c"))
      return CpuIsa::portable;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
      return CpuIsa::avx2;
    return __builtin_cpu_supports("avx512bf16") ? CpuIsa::avx512_bf16 : CpuIsa::avx512;
  }();
  return detected;
#else
  return CpuIsa::portable;
#endif
}

namespace detail {

inline CpuIsa initial_cpu_isa() {
  const CpuIsa detected = detected_cpu_isa();
  if (const char* requested = std::getenv("ANABRANCH_CPU_ISA")) {
    for (CpuIsa isa : all_cpu_isas) {
      if (cpu_isa_name(isa) != requested) continue;
      check(isa <= detected, "ANABRANCH_CPU_ISA: is ", requested, ", must be at most ", cpu_isa_name(detected),
            " on this machine; unset it to use the fastest");
      return isa;
    }
    check(false, "ANABRANCH_CPU_ISA: is ", requested,
          ", must be portable, avx2, avx512 or avx512_bf16; unset it to use the fastest");
  }
#if defined(__x86_64__)
  // Intel's cores start a vdpbf16ps every second cycle and two FMAs in each: measured on Emerald Rapids, 88 against
  // 175 GFLOP/s. There, widening bfloat16 to float is twice as fast; AMD's cores have it the other way round.
  if (detected == CpuIsa::avx512_bf16 && __builtin_cpu_is("intel")) return CpuIsa::avx512;
#endif
  return detected;
}

inline std::atomic<CpuIsa>& cpu_isa_in_use() {
  static std::atomic<CpuIsa> isa{initial_cpu_isa()};
  return isa;
}

}  // namespace detail

/// The instruction set in use: the fastest one detected, or what ANABRANCH_CPU_ISA or set_cpu_isa() chose.
inline CpuIsa cpu_isa() { return detail::cpu_isa_in_use().load(std::memory_order_relaxed); }

/// Makes all kernels that start from here on use `isa`. Throws std::invalid_argument if this machine does not have it.
inline void set_cpu_isa(CpuIsa isa) {
  check(isa >= CpuIsa::portable && isa <= detected_cpu_isa(), "set_cpu_isa: isa is ",
        isa >= CpuIsa::portable && isa <= CpuIsa::avx512_bf16 ? cpu_isa_name(isa) : "unknown", ", must be at most ",
        cpu_isa_name(detected_cpu_isa()), " on this machine; pass one that the processor has");
  detail::cpu_isa_in_use().store(isa, std::memory_order_relaxed);
}

}  // namespace anabranch
