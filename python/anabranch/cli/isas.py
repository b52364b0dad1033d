"""The instruction sets of the CPU kernels by the suffix of a kernel's file, slowest first, as
include/anabranch/core/cpu_features.hpp counts them. Knows no torch, for `info`."""

ISAS = {"portable": "portable", "avx2": "AVX2", "avx512": "AVX-512", "avx512bf16": "AVX-512 BF16"}
