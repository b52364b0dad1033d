// What a block of the N-cache's read is made of: rows of features and states, their products with the weights, and the
// way back, as loops over the compiler's vectors. ncache_read_kernels.hpp puts them together.
//
// The products keep 8 rows (forward) or 8 columns of x (backward) in registers: per 8 multiply-adds of a vector they
// load one vector and broadcast 8 numbers from the first cache, which its loads just sustain.
//
// Everything is a template on the instruction set, or always inlined, so that no copy compiled with AVX-512 can be the
// one the linker keeps for an older machine.
#pragma once

#include "anabranch/core/lanes_cpu.hpp"
#include "anabranch/temporal/ncache_read_cpu.hpp"

namespace anabranch::detail {

template <CpuIsa isa, class T>
struct NCacheReadBlocks {
  using Sum = accumulate_t<T>;
  using Number = Lanes<isa, Sum>;
  using Vector = typename Number::Vector;
  static constexpr int64_t lanes = Number::width;
  using Scratch = NCacheScratch<Sum>;
  using Problem = NCacheRead<T>;
  using Packed = NCachePacked<Sum>;

  [[gnu::always_inline]] static Vector load(const Sum* from) {
    Vector value;
    __builtin_memcpy(&value, from, sizeof(value));
    return value;
  }
  [[gnu::always_inline]] static void store(Vector value, Sum* to) { __builtin_memcpy(to, &value, sizeof(value)); }

  /// out [rows, columns] = x [rows, depth] weight [depth, columns]; rows a multiple of 8.
  static void product(int64_t rows, int64_t depth, int64_t stride, int64_t columns, const Sum* __restrict x,
                      const Sum* __restrict weight, Sum* __restrict out) {
    for (int64_t v = 0; v < columns; v += lanes) {
      for (int64_t r = 0; r < rows; r += ncache_unroll) {
        Vector sums[ncache_unroll] = {};
        for (int64_t k = 0; k < depth; ++k) {
          const Vector w = load(weight + k * columns + v);
#pragma GCC unroll 8
          for (int i = 0; i < ncache_unroll; ++i) sums[i] += x[(r + i) * stride + k] * w;
        }
#pragma GCC unroll 8
        for (int i = 0; i < ncache_unroll; ++i) store(sums[i], out + (r + i) * columns + v);
      }
    }
  }

  /// sums [depth, columns] += x^T [depth, rows] d [rows, columns]; depth a multiple of 8.
  static void outer(int64_t rows, int64_t depth, int64_t columns, const Sum* __restrict x, const Sum* __restrict d,
                    Sum* __restrict to) {
    for (int64_t v = 0; v < columns; v += lanes) {
      for (int64_t k = 0; k < depth; k += ncache_unroll) {
        Vector sums[ncache_unroll];
#pragma GCC unroll 8
        for (int i = 0; i < ncache_unroll; ++i) sums[i] = load(to + (k + i) * columns + v);
        for (int64_t r = 0; r < rows; ++r) {
          const Vector given = load(d + r * columns + v);
#pragma GCC unroll 8
          for (int i = 0; i < ncache_unroll; ++i) sums[i] += x[r * depth + k + i] * given;
        }
#pragma GCC unroll 8
        for (int i = 0; i < ncache_unroll; ++i) store(sums[i], to + (k + i) * columns + v);
      }
    }
  }

  [[gnu::always_inline]] static Sum dot(int64_t count, const Sum* __restrict a, const Sum* __restrict b) {
    Vector sums{};
    for (int64_t k = 0; k < count; k += lanes) sums += load(a + k) * load(b + k);
    Sum sum = 0;
    for (int l = 0; l < lanes; ++l) sum += sums[l];
    return sum;
  }

  /// Cosines and sines. For float the angle is reduced to a quarter turn in double, and Taylor's polynomials do the
  /// rest; where an angle is beyond 2^50 its quarter has no meaning in double any more and libm answers.
  static void turn(int64_t count, const double* __restrict angle, Sum* __restrict cosine, Sum* __restrict sine) {
    bool small = std::is_same_v<Sum, float>;
    for (int64_t i = 0; i < count; ++i) small &= angle[i] < 0x1p50 && angle[i] > -0x1p50;
    if (!small) {
      for (int64_t i = 0; i < count; ++i) {
        cosine[i] = static_cast<Sum>(std::cos(angle[i])), sine[i] = static_cast<Sum>(std::sin(angle[i]));
      }
      return;
    }
    constexpr double shifter = 6755399441055744.0;  // 1.5 * 2^52: adding it rounds to an integer, in the low bits
    for (int64_t i = 0; i < count; ++i) {
      const double shifted = angle[i] * 0.63661977236758134308 + shifter, quarters = shifted - shifter;
      const int quarter = static_cast<int>(bits_to<int64_t>(shifted) & 3);
      const float r =
          static_cast<float>((angle[i] - quarters * 1.57079632679489655800) - quarters * 6.123233995736766e-17);
      const float q = r * r;
      const float s = r + r * q * (-1.0f / 6 + q * (1.0f / 120 + q * (-1.0f / 5040 + q * (1.0f / 362880))));
      const float c =
          1.0f + q * (-0.5f + q * (1.0f / 24 + q * (-1.0f / 720 + q * (1.0f / 40320 + q * (-1.0f / 3628800)))));
      const float along = quarter & 1 ? s : c, across = quarter & 1 ? c : s;
      cosine[i] = quarter == 1 || quarter == 2 ? -along : along;
      sine[i] = quarter & 2 ? -across : across;
    }
  }

  /// A row of features, zeros if there is none. Written out: a call of memcpy for each costs more than the bytes.
  [[gnu::always_inline]] static void copy(const T* __restrict from, int64_t count, Sum* __restrict to) {
    int64_t k = 0;
    if (!from) {
      for (; k < count; ++k) to[k] = 0;
      return;
    }
    if constexpr (std::is_same_v<T, Sum>) {
      for (; k + lanes <= count; k += lanes) store(load(from + k), to + k);
      if (k < count && count >= lanes) {
        store(load(from + count - lanes), to + count - lanes);
        return;
      }
    }
    for (; k < count; ++k) to[k] = static_cast<Sum>(from[k]);
  }

  /// x and states of the slots in `list`; `with_sines`, behind x what the backward sums up for phase and frequency.
  static void load_block(const Problem& problem, const Packed& packed, int64_t rows, const int64_t* list,
                         const Scratch& scratch, bool with_sines) {
    const int64_t node_width = problem.node_width, edge_width = problem.edge_width, times = problem.time_width;
    for (int64_t r = 0; r < rows; ++r) {
      Sum* x = scratch.x + r * packed.depth;
      copy(problem.node_row(list[r]), node_width, x);
      if (edge_width) copy(problem.edge_row(list[r]), edge_width, x + node_width);
      x[problem.width()] = 1;
      Sum* states = scratch.states + r * packed.hidden_depth;
      copy(problem.states + list[r] * problem.state_size, problem.state_size, states);
      states[problem.state_size] = 1;
    }
    if (times == 0) return;
    for (int64_t r = 0; r < rows; ++r) {
      scratch.tau[r] = problem.tau(list[r]);
      for (int64_t d = 0; d < times; ++d) scratch.angle[r * times + d] = problem.angle(scratch.tau[r], d);
    }
    turn(rows * times, scratch.angle, scratch.cosine, scratch.sine);
    for (int64_t r = 0; r < rows; ++r) {
      Sum* x = scratch.x + r * packed.depth + node_width + edge_width;
      for (int64_t d = 0; d < times; ++d) x[d] = scratch.cosine[r * times + d];
      for (int64_t d = 0; with_sines && d < times; ++d) {
        const Sum sine = scratch.sine[r * times + d];
        x[times + 1 + d] = sine;
        x[2 * times + 1 + d] = static_cast<Sum>(sine * scratch.tau[r]);
      }
    }
  }

  /// F states of one gate, where they are as many as usual: one access each.
  static constexpr int64_t usual = 4;
  [[gnu::always_inline]] static void copy_usual(const Sum* from, Sum* to) {
    __builtin_memcpy(to, from, usual * sizeof(Sum));
  }
  [[gnu::always_inline]] static void add_usual(const Sum* a, const Sum* b, Sum* to) {
    using Part [[gnu::vector_size(usual * sizeof(Sum))]] = Sum;
    Part left, right;
    __builtin_memcpy(&left, a, sizeof(left)), __builtin_memcpy(&right, b, sizeof(right));
    left += right;
    __builtin_memcpy(to, &left, sizeof(left));
  }

  /// The sums of all gates, from rows of gx and gh to an array for each kind.
  static void gate_sums(int64_t F, int64_t rows, const Packed& packed, const Scratch& scratch) {
    for (int64_t r = 0; r < rows; ++r) {
      const Sum *input = scratch.input + r * packed.columns, *hidden = scratch.hidden + r * packed.columns;
      const Sum* states = scratch.states + r * packed.hidden_depth;
      if (F == usual) {
        add_usual(input, hidden, scratch.gates[0] + r * usual);
        add_usual(input + usual, hidden + usual, scratch.gates[1] + r * usual);
        copy_usual(input + 2 * usual, scratch.gates[2] + r * usual);
        copy_usual(hidden + 2 * usual, scratch.gates[3] + r * usual);
        copy_usual(states, scratch.gates[4] + r * usual);
        continue;
      }
      for (int64_t f = 0; f < F; ++f) {
        scratch.gates[0][r * F + f] = input[f] + hidden[f];
        scratch.gates[1][r * F + f] = input[F + f] + hidden[F + f];
        scratch.gates[2][r * F + f] = input[2 * F + f];
        scratch.gates[3][r * F + f] = hidden[2 * F + f];
        scratch.gates[4][r * F + f] = states[f];
      }
    }
  }

  static void products(const Problem& problem, const Packed& packed, int64_t rows, const Scratch& scratch) {
    const int64_t padded = (rows + ncache_unroll - 1) / ncache_unroll * ncache_unroll;
    product(padded, problem.width() + 1, packed.depth, packed.columns, scratch.x, packed.weight, scratch.input);
    product(padded, problem.state_size + 1, packed.hidden_depth, packed.columns, scratch.states, packed.weight_hh,
            scratch.hidden);
    gate_sums(problem.state_size, rows, packed, scratch);
  }

  /// Asks for the features of the slots in `list`, so that they come while the block before is multiplied.
  static void prefetch(const Problem& problem, int64_t rows, const int64_t* list) {
    const auto ask = [](const T* row, int64_t width) {
      const char* from = reinterpret_cast<const char*>(row);
      for (int64_t at = 0; row && at < width * static_cast<int64_t>(sizeof(T)); at += 64) {
        __builtin_prefetch(from + at, 0, 2);
      }
    };
    for (int64_t r = 0; r < rows; ++r) {
      ask(problem.node_row(list[r]), problem.node_width);
      if (problem.edge_width) ask(problem.edge_row(list[r]), problem.edge_width);
    }
  }
};

}  // namespace anabranch::detail
