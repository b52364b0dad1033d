// The arguments of the mixers room's ops, on every device: checks, and the problems they make.
#pragma once

#include <tuple>

#include "anabranch/mixers/streams.hpp"
#include "torch.hpp"

namespace anabranch {

inline void check_shape(const char* op, const char* name, const Tensor& tensor, const Tensor& anchor, ScalarType type,
                        std::initializer_list<int64_t> shape, const char* meaning) {
  check_same_device(op, name, tensor, "x", anchor);
  check_dtype(op, name, tensor, type);
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  std::string wanted;
  int64_t dim = 0;
  for (const int64_t size : shape) {
    same = same && tensor.size(dim) == size;
    wanted += (dim++ ? ", " : "") + std::to_string(size);
  }
  check(same, op, ": ", name, " has shape ", shape_string(tensor), ", must be (", wanted, "), ", meaning,
        "; pass a tensor of that shape");
}

/// In the order of the schemas.
struct MixerArguments {
  std::optional<Tensor> permutations;
  int64_t num_streams, kind, iterations, rank;
  double eps, tolerance, scale;
  bool implicit_gradient, transposed_logits, transposed_matrix;

  void check_all(const char* op, const Tensor& anchor) const {
    check(num_streams >= kMinStreams && num_streams <= kMaxStreams, op, ": num_streams is ", num_streams,
          ", must be 2 to 8; use another number of streams");
    check(kind >= 0 && kind <= static_cast<int64_t>(MixerKind::grassmann), op, ": kind is ", kind,
          ", must be that of a mixer, 0 to 7; see MixerKind");
    const auto mixer = static_cast<MixerKind>(kind);
    if (mixer == MixerKind::sinkhorn || mixer == MixerKind::truncated_cayley) {
      check(iterations >= 1 && iterations <= kMaxMixerIterations, op, ": iterations is ", iterations, ", must be 1 to ",
            kMaxMixerIterations, "; for a converged matrix ask for a tolerance");
      check(eps == 0 || (eps >= 1e-12 && eps < 1), op, ": eps is ", eps,
            ", must be 0, or at least 1e-12 and less than 1; 1e-6 is usual");
    }
    if (mixer == MixerKind::exact_sinkhorn) {
      check(tolerance >= 1e-12 && tolerance < 1, op, ": tolerance is ", tolerance,
            ", must be at least 1e-12 and less than 1; 1e-6 is usual");
    }
    if (mixer == MixerKind::grassmann) {
      check(rank >= 1 && rank <= num_streams, op, ": rank is ", rank, ", must be 1 to num_streams=", num_streams,
            "; half of the streams is usual");
    }
    if (mixer == MixerKind::permutation_mixture) {
      check(permutations.has_value(), op,
            ": permutations is None, must be given for this mixer; pass [P, num_streams]");
      check_same_device(op, "permutations", *permutations, "x", anchor);
      check_dtype(op, "permutations", *permutations, ScalarType::Int);
      check(permutations->dim() == 2 && permutations->size(0) > 0 && permutations->size(1) == num_streams, op,
            ": permutations has shape ", shape_string(*permutations), ", must be (P, num_streams=", num_streams,
            ") with P > 0; pass one permutation a row");
      check(permutations->is_contiguous(), op, ": permutations is not contiguous, must be; call .contiguous()");
      for (int64_t i = 0; permutations->is_cpu() && i < permutations->numel(); ++i) {
        const int32_t column = data<int32_t>(*permutations)[i];
        check(column >= 0 && column < num_streams, op, ": permutations holds ", column, ", must hold 0 to ",
              num_streams - 1, "; pass rows like those of itertools.permutations");
      }
    }
  }
  Mixer mixer() const {
    Mixer out;
    out.kind = static_cast<MixerKind>(kind);
    out.num_streams = static_cast<int>(num_streams);
    out.iterations = static_cast<int>(iterations);
    out.rank = static_cast<int>(rank);
    out.eps = eps, out.tolerance = tolerance, out.scale = scale;
    out.implicit_gradient = implicit_gradient;
    out.transposed_logits = transposed_logits, out.transposed_matrix = transposed_matrix;
    if (out.kind == MixerKind::permutation_mixture) {  // no other mixer has had them checked
      out.permutations = data<int32_t>(*permutations);
      out.num_permutations = permutations->size(0);
    }
    return out;
  }
};

#define ANABRANCH_MIXER_SCHEMA                                                                                    \
  "Tensor? permutations, int num_streams, int kind, int iterations, int rank, float eps, float tolerance, float " \
  "scale, bool implicit_gradient, bool transposed_logits, bool transposed_matrix"
#define ANABRANCH_MIXER_PARAMETERS                                                                               \
  const std::optional<Tensor>&permutations, int64_t num_streams, int64_t kind, int64_t iterations, int64_t rank, \
      double eps, double tolerance, double scale, bool implicit_gradient, bool transposed_logits,                \
      bool transposed_matrix
#define ANABRANCH_MIXER_ARGUMENTS                                                                         \
  {permutations,      num_streams,      kind, iterations, rank, eps, tolerance, scale, implicit_gradient, \
   transposed_logits, transposed_matrix}

/// The arguments of mix_matrix and its backward. logits [matrices, num_logits].
inline void check_logits(const char* op, const Tensor& logits, const MixerArguments& in) {
  check(logits.scalar_type() == ScalarType::Float || logits.scalar_type() == ScalarType::Double, op, ": logits is ",
        dtype_name(logits.scalar_type()), ", must be float32 or float64; convert it with .to(torch.float32)");
  check_dim(op, "logits", logits, 2);
  in.check_all(op, logits);
  check(logits.size(1) == in.mixer().num_logits(), op, ": logits has shape ", shape_string(logits), ", must be (B, ",
        in.mixer().num_logits(), ") for this mixer; pass one row per matrix");
}

/// What a stream step takes besides the streams, in the order of the schemas.
struct ProjectionArguments {
  std::optional<Tensor> weight;
  Tensor scale, bias;
  int64_t segments;
  double norm_eps;
  bool centered, squash;
  int64_t gates;
  double pre_eps, post_scale, post_eps, temperature;
  bool per_stream;
  MixerArguments mixer;

  CoefficientMap map() const {
    return {{static_cast<GateKind>(gates), pre_eps, post_scale, post_eps, temperature}, mixer.mixer(), per_stream};
  }

  /// x [tokens, n, C].
  void check_all(const char* op, const Tensor& x) const {
    mixer.check_all(op, x);
    const int64_t n = mixer.num_streams;
    check(gates >= 0 && gates <= 2, op, ": gates is ", gates, ", must be 0, 1 or 2; see GateKind");
    check(temperature > 0, op, ": temperature is ", temperature, ", must be positive; 1 is usual");
    check(norm_eps >= 0, op, ": norm_eps is ", norm_eps, ", must not be negative; 1e-6 is usual");
    check(segments == 1 || segments == n, op, ": segments is ", segments, ", must be 1 or num_streams=", n,
          "; 1 reads all streams at once");
    check(!per_stream || (gates != static_cast<int64_t>(GateKind::softmax) && mixer.mixer().num_logits() % n == 0), op,
          ": per_stream is True, must be False for this mixer or these gates; use a mixer with logits per stream");
    const int64_t logits = map().num_logits();
    const ScalarType type = accumulate_type(x.scalar_type());
    check_shape(op, "scale", scale, x, type, {logits}, "one for each logit");
    check_shape(op, "bias", bias, x, type, {logits}, "one for each logit");
    check(logits % segments == 0, op, ": segments is ", segments, ", must divide the ", logits,
          " logits; use one segment");
    if (weight) {
      check_shape(op, "weight", *weight, x, type, {logits / segments, n * x.size(2) / segments},
                  "(logits, num_streams * channels) of a segment");
    }
  }
  ProjectionArguments contiguous() const {
    ProjectionArguments out = *this;
    out.weight = as_contiguous(weight);
    out.scale = as_contiguous(scale);
    out.bias = as_contiguous(bias);
    return out;
  }
  template <class T>
  StreamProjection<T> problem() const {
    using Sum = accumulate_t<T>;
    return {data<Sum>(weight), data<Sum>(scale), data<Sum>(bias), segments, norm_eps, centered, squash, map()};
  }
};

#define ANABRANCH_PROJECTION_SCHEMA                                                                           \
  "Tensor? weight, Tensor scale, Tensor bias, int segments, float norm_eps, bool centered, bool squash, int " \
  "gates, float pre_eps, float post_scale, float post_eps, float temperature, bool per_stream, Tensor? "      \
  "permutations, int num_streams, int kind, int iterations, int rank, float eps, float tolerance, float "     \
  "mixer_scale, bool implicit_gradient, bool transposed_logits, bool transposed_matrix"
#define ANABRANCH_PROJECTION_PARAMETERS                                                                           \
  const std::optional<Tensor>&weight, const Tensor &scale, const Tensor &bias, int64_t segments, double norm_eps, \
      bool centered, bool squash, int64_t gates, double pre_eps, double post_scale, double post_eps,              \
      double temperature, bool per_stream, const std::optional<Tensor>&permutations, int64_t num_streams,         \
      int64_t kind, int64_t iterations, int64_t rank, double eps, double tolerance, double mixer_scale,           \
      bool implicit_gradient, bool transposed_logits, bool transposed_matrix
#define ANABRANCH_PROJECTION_ARGUMENTS                                                                            \
  {                                                                                                               \
    weight, scale, bias, segments, norm_eps, centered, squash, gates, pre_eps, post_scale, post_eps, temperature, \
        per_stream, {                                                                                             \
      permutations, num_streams, kind, iterations, rank, eps, tolerance, mixer_scale, implicit_gradient,          \
          transposed_logits, transposed_matrix                                                                    \
    }                                                                                                             \
  }

/// x [tokens, n, C] of whatever ops.
inline void check_streams(const char* op, const Tensor& x) {
  check_floating(op, "x", x);
  check_dim(op, "x", x, 3);
  check(x.size(1) >= kMinStreams && x.size(1) <= kMaxStreams, op, ": x has shape ", shape_string(x),
        ", must be (tokens, 2 to 8 streams, channels); use another number of streams");
  check(x.size(2) > 0, op, ": x has shape ", shape_string(x), ", must have channels; pass at least one");
}
inline StreamShape shape_of(const Tensor& x) { return {x.size(0), x.size(1), x.size(2)}; }
inline int64_t num_coefficients(const Tensor& x) { return x.size(1) * (x.size(1) + 2); }

inline void check_coefficients(const char* op, const char* name, const Tensor& coefficients, const Tensor& x) {
  check_shape(op, name, coefficients, x, accumulate_type(x.scalar_type()), {x.size(0), num_coefficients(x)},
              "(tokens, n * (n + 2)) of x");
}
inline void check_like_streams(const char* op, const char* name, const Tensor& tensor, const Tensor& x) {
  check_shape(op, name, tensor, x, x.scalar_type(), {x.size(0), x.size(1), x.size(2)}, "the shape of x");
}
inline void check_like_stream(const char* op, const char* name, const Tensor& tensor, const Tensor& x) {
  check_shape(op, name, tensor, x, x.scalar_type(), {x.size(0), x.size(2)}, "(tokens, channels) of x");
}

}  // namespace anabranch
