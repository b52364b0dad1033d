// The N-cache's read of a tile, forward and backward; csrc/temporal/ncache_read_<isa>.cpp compiles it once with its
// flags. ncache_read_cpu.hpp has the plan, ncache_read_blocks.hpp the parts.
#pragma once

#include "anabranch/temporal/ncache_read_blocks.hpp"

namespace anabranch::detail {

template <CpuIsa isa, class T>
struct NCacheReadLoops : NCacheReadBlocks<isa, T> {
  using Blocks = NCacheReadBlocks<isa, T>;
  using Blocks::copy_usual, Blocks::dot, Blocks::lanes, Blocks::load, Blocks::outer, Blocks::store, Blocks::usual;
  using typename Blocks::Number, typename Blocks::Packed, typename Blocks::Problem, typename Blocks::Projected,
      typename Blocks::Scratch;
  using typename Blocks::Sum;

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

  /// f(rows, list) for the occupied slots in [begin, end), a block at a time; x, states and products are there.
  template <class F>
  [[gnu::always_inline]] static void for_each_block(const Problem& problem, const Packed& packed,
                                                    const Projected& projected, const Scratch& scratch, int64_t begin,
                                                    int64_t end, bool with_sines, F&& f) {
    int64_t list[ncache_tile + 1], count = 0;
    for (int64_t i = begin; i < end; ++i) {
      list[count] = i;
      count += problem.occupied(i);
    }
    const auto rows_at = [&](int64_t at) { return count - at < ncache_block ? count - at : ncache_block; };
    Blocks::prefetch(problem, projected, rows_at(0), list);
    for (int64_t at = 0; at < count; at += ncache_block) {
      const int64_t rows = rows_at(at), next = at + rows;
      Blocks::load_block(problem, packed, projected, rows, list + at, scratch, with_sines);
      Blocks::prefetch(problem, projected, rows_at(next), list + next);
      Blocks::products(problem, packed, projected, rows, scratch);
      f(rows, list + at);
    }
  }

  static void forward(const Problem& problem, const Packed& packed, const Projected& projected, int64_t begin,
                      int64_t end, std::byte* memory, T* z) {
    const Scratch scratch(problem, packed, memory);
    const int64_t F = problem.state_size;
    for_each_block(problem, packed, projected, scratch, begin, end, false, [&](int64_t rows, const int64_t* list) {
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
    for_each_block(problem, packed, {}, scratch, begin, end, true, [&](int64_t rows, const int64_t* list) {
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
  return {Loops::lanes, Loops::project, Loops::forward, Loops::backward, Loops::add_row};
}

}  // namespace anabranch
