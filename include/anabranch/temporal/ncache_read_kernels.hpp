// The blocks of the N-cache's read as loops over the compiler's vectors; csrc/temporal/ncache_read_<isa>.cpp compiles
// them once with its flags. ncache_read_cpu.hpp has the plan.
//
// The products keep 8 rows (forward) or 8 columns of x (backward) in registers: per 8 multiply-adds of a vector they
// load one vector and broadcast 8 numbers from the first cache, which its two loads a cycle just sustain.
//
// Everything is a template on the instruction set, or always inlined, so that no copy compiled with AVX-512 can be the
// one the linker keeps for an older machine.
#pragma once

#include "anabranch/mixers/lanes_cpu.hpp"
#include "anabranch/temporal/ncache_read_cpu.hpp"

namespace anabranch::detail {

template <CpuIsa isa, class T>
struct NCacheReadLoops {
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

  /// The gates of as many states as a vector has, from the sums at e on.
  struct Gates {
    Number r, u, n, hidden_n, state;

    [[gnu::always_inline]] Gates(const Scratch& scratch, int64_t e)
        : r(sigmoid_of(Number(load(scratch.gates[0] + e)))),
          u(sigmoid_of(Number(load(scratch.gates[1] + e)))),
          n(tanh_of(Number(load(scratch.gates[2] + e)) + r * Number(load(scratch.gates[3] + e)))),
          hidden_n(load(scratch.gates[3] + e)),
          state(load(scratch.gates[4] + e)) {}
  };

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

  /// f(rows, list) for the occupied slots in [begin, end), a block at a time; x, states and products are there.
  template <class F>
  [[gnu::always_inline]] static void for_each_block(const Problem& problem, const Packed& packed,
                                                    const Scratch& scratch, int64_t begin, int64_t end, bool with_sines,
                                                    F&& f) {
    int64_t list[ncache_tile + 1], count = 0;
    for (int64_t i = begin; i < end; ++i) {
      list[count] = i;
      count += problem.occupied(i);
    }
    const auto rows_at = [&](int64_t at) { return count - at < ncache_block ? count - at : ncache_block; };
    prefetch(problem, rows_at(0), list);
    for (int64_t at = 0; at < count; at += ncache_block) {
      const int64_t rows = rows_at(at), next = at + rows;
      load_block(problem, packed, rows, list + at, scratch, with_sines);
      prefetch(problem, rows_at(next), list + next);
      products(problem, packed, rows, scratch);
      f(rows, list + at);
    }
  }

  static void forward(const Problem& problem, const Packed& packed, int64_t begin, int64_t end, std::byte* memory,
                      T* z) {
    const Scratch scratch(problem, packed, memory);
    const int64_t F = problem.state_size;
    for_each_block(problem, packed, scratch, begin, end, false, [&](int64_t rows, const int64_t* list) {
      for (int64_t e = 0; e < rows * F; e += lanes) {
        const Gates gates(scratch, e);
        store(((Number(1) - gates.u) * gates.n + gates.u * gates.state).v, scratch.value + e);
      }
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t f = 0; f < F; ++f) z[list[r] * F + f] = T(scratch.value[r * F + f]);
      }
    });
  }

  /// Gates' sums become their gradients, in place, and `value` the part of the states' gradient that goes by u.
  static void gate_gradients(int64_t count, const Scratch& scratch) {
    for (int64_t e = 0; e < count; e += lanes) {
      const Number given(load(scratch.value + e)), one(1);
      const Gates gates(scratch, e);
      const Number dn = given * (one - gates.u) * (one - gates.n * gates.n);
      store((dn * gates.hidden_n * gates.r * (one - gates.r)).v, scratch.gates[0] + e);
      store((given * (gates.state - gates.n) * gates.u * (one - gates.u)).v, scratch.gates[1] + e);
      store(dn.v, scratch.gates[2] + e);
      store((dn * gates.r).v, scratch.gates[3] + e);
      store((given * gates.u).v, scratch.value + e);
    }
  }

  /// The gates' gradients as rows of gx and gh; their padding is zero from the products.
  static void gradient_rows(int64_t F, int64_t rows, int64_t columns, const Scratch& scratch) {
    for (int64_t r = 0; r < rows; ++r) {
      Sum *input = scratch.input + r * columns, *hidden = scratch.hidden + r * columns;
      if (F == usual) {
        copy_usual(scratch.gates[0] + r * usual, input), copy_usual(scratch.gates[0] + r * usual, hidden);
        copy_usual(scratch.gates[1] + r * usual, input + usual);
        copy_usual(scratch.gates[1] + r * usual, hidden + usual);
        copy_usual(scratch.gates[2] + r * usual, input + 2 * usual);
        copy_usual(scratch.gates[3] + r * usual, hidden + 2 * usual);
        continue;
      }
      for (int64_t f = 0; f < F; ++f) {
        input[f] = hidden[f] = scratch.gates[0][r * F + f];
        input[F + f] = hidden[F + f] = scratch.gates[1][r * F + f];
        input[2 * F + f] = scratch.gates[2][r * F + f];
        hidden[2 * F + f] = scratch.gates[3][r * F + f];
      }
    }
  }

  static void backward(const Problem& problem, const Packed& packed, const T* dz, int64_t begin, int64_t end,
                       std::byte* memory, Sum* partial, Sum* dgates, Sum* dstates) {
    const Scratch scratch(problem, packed, memory);
    const int64_t F = problem.state_size, columns = packed.columns;
    for_each_block(problem, packed, scratch, begin, end, true, [&](int64_t rows, const int64_t* list) {
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t f = 0; f < F; ++f) scratch.value[r * F + f] = static_cast<Sum>(dz[list[r] * F + f]);
      }
      gate_gradients(rows * F, scratch);
      gradient_rows(F, rows, columns, scratch);
      if (partial) {
        outer(rows, packed.depth, columns, scratch.x, scratch.input, partial);
        outer(rows, packed.hidden_depth, columns, scratch.states, scratch.hidden, partial + packed.depth * columns);
      }
      for (int64_t r = 0; dgates && r < rows; ++r) {
        __builtin_memcpy(dgates + list[r] * columns, scratch.input + r * columns, columns * sizeof(Sum));
      }
      for (int64_t r = 0; dstates && r < rows; ++r) {
        for (int64_t f = 0; f < F; ++f) {
          dstates[list[r] * F + f] =
              scratch.value[r * F + f] + dot(columns, scratch.hidden + r * columns, packed.weight_hh + f * columns);
        }
      }
    });
  }

  static void add_row(int64_t gates, int64_t width, int64_t stride, const Sum* __restrict dgates,
                      const Sum* __restrict weight, Sum* __restrict row) {
    for (int64_t j = 0; j < gates; ++j) {
      for (int64_t k = 0; k < width; ++k) row[k] += dgates[j] * weight[j * stride + k];
    }
  }
};

}  // namespace anabranch::detail

namespace anabranch {

template <CpuIsa isa, class T>
NCacheReadKernels<T> ncache_read_kernels_for() {
  using Loops = detail::NCacheReadLoops<isa, T>;
  return {Loops::lanes, Loops::forward, Loops::backward, Loops::add_row};
}

}  // namespace anabranch
