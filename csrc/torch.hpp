// The only file that includes torch: tensors as views, outputs, the thread pool, and the names used in errors.
//
// Ops are registered through torch's stable C++ interface (torch/csrc/stable), so one binary serves every torch from
// 2.10 on. Arguments are checked with anabranch::check, which throws std::invalid_argument: ValueError in Python.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <initializer_list>
#include <optional>
#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "anabranch/core/check.hpp"
#include "anabranch/core/memory.hpp"
#include "anabranch/core/scalar.hpp"

namespace anabranch {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline const char* dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Bool:
      return "bool";
    default:
      return "an unsupported dtype";
  }
}

/// A tensor's shape or device in a message. The string is made where it is printed: an op has a dozen checks, and
/// hardly ever a message.
struct ShapeString {
  const Tensor& tensor;
  friend std::ostream& operator<<(std::ostream& out, const ShapeString& shape) {
    const auto sizes = shape.tensor.sizes();
    out << "(";
    for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
    return out << (sizes.size() == 1 ? ",)" : ")");
  }
};
inline ShapeString shape_string(const Tensor& tensor) { return {tensor}; }

struct DeviceString {
  const Tensor& tensor;
  friend std::ostream& operator<<(std::ostream& out, const DeviceString& device) {
    if (device.tensor.is_cpu()) return out << "cpu";
    return device.tensor.is_cuda() ? out << "cuda:" << device.tensor.get_device_index() : out << "another device";
  }
};
inline DeviceString device_string(const Tensor& tensor) { return {tensor}; }

inline void check_dim(const char* op, const char* name, const Tensor& tensor, int64_t dim) {
  check(tensor.dim() == dim, op, ": ", name, " has shape ", shape_string(tensor), ", must have ", dim, " dimensions");
}

inline void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType type) {
  check(tensor.scalar_type() == type, op, ": ", name, " is ", dtype_name(tensor.scalar_type()), ", must be ",
        dtype_name(type), "; convert it with .to(torch.", dtype_name(type), ")");
}

inline void check_floating(const char* op, const char* name, const Tensor& tensor) {
  const ScalarType type = tensor.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
            type == ScalarType::Half,
        op, ": ", name, " is ", dtype_name(type),
        ", must be float32, float64, bfloat16 or float16; convert it with .to(torch.float32)");
}

inline void check_same_device(const char* op, const char* name, const Tensor& tensor, const char* anchor_name,
                              const Tensor& anchor) {
  check(tensor.is_cpu() == anchor.is_cpu() && tensor.get_device_index() == anchor.get_device_index(), op, ": ", name,
        " is on ", device_string(tensor), ", must be on ", device_string(anchor), " like ", anchor_name,
        "; move it with .to(", anchor_name, ".device)");
}

/// A contiguous int32 vector of `size` entries (any size if negative), as every part of a plan is.
inline void check_index_vector(const char* op, const char* name, const Tensor& tensor, int64_t size = -1) {
  check_dtype(op, name, tensor, ScalarType::Int);
  check_dim(op, name, tensor, 1);
  check(size < 0 || tensor.size(0) == size, op, ": ", name, " has shape ", shape_string(tensor), ", must be (", size,
        ",)");
  check(tensor.is_contiguous(), op, ": ", name, " is not contiguous, must be; call .contiguous()");
}

/// The bytes of a contiguous tensor.
struct MemoryOf {
  uintptr_t begin, end;

  MemoryOf(const Tensor& tensor)  // NOLINT: a tensor stands for its memory
      : begin(reinterpret_cast<uintptr_t>(tensor.const_data_ptr())),
        end(begin + static_cast<uintptr_t>(tensor.numel()) * tensor.element_size()) {}

  bool overlaps(const MemoryOf& other) const {
    return begin != end && other.begin != other.end && begin < other.end && other.begin < end;
  }
};

/// Raises ValueError where a contiguous tensor lies in one that the op writes: what was checked could change under it.
inline void check_apart(const char* op, const char* name, const MemoryOf& memory, const char* written_name,
                        const MemoryOf& written) {
  check(!memory.overlaps(written), op, ": ", name, " shares memory with ", written_name,
        ", must have its own; pass a .clone() of it");
}

/// The number that torch's C interface has for a dtype: those of dtype_name.
inline int32_t c_dtype(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return aoti_torch_dtype_float32();
    case ScalarType::Double:
      return aoti_torch_dtype_float64();
    case ScalarType::BFloat16:
      return aoti_torch_dtype_bfloat16();
    case ScalarType::Half:
      return aoti_torch_dtype_float16();
    case ScalarType::Int:
      return aoti_torch_dtype_int32();
    case ScalarType::Long:
      return aoti_torch_dtype_int64();
    case ScalarType::Char:
      return aoti_torch_dtype_int8();
    case ScalarType::Bool:
      return aoti_torch_dtype_bool();
    default:
      throw std::invalid_argument("anabranch: a result is to be of a dtype that no op has; add it to c_dtype");
  }
}

/// A fresh row-major tensor on the device of `like`. Not by torch::stable::new_empty, which has torch look its op up by
/// name: a microsecond for each result, of calls that take ten.
inline Tensor empty_on(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  std::array<int64_t, 8> strides;
  check(shape.size() <= strides.size(), "empty_on: shape has ", shape.size(), " sizes, must have at most ",
        strides.size(), "; make room for more");
  int64_t stride = 1;
  for (size_t dim = shape.size(); dim-- > 0; stride *= std::max<int64_t>(1, shape.begin()[dim])) strides[dim] = stride;
  int32_t device_type = 0;
  AtenTensorHandle made = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()), shape.begin(),
                                                         strides.data(), c_dtype(type), device_type,
                                                         like.get_device_index(), &made));
  return Tensor(made);
}

inline Tensor zeros_on(const Tensor& like, std::initializer_list<int64_t> shape, ScalarType type) {
  return torch::stable::new_zeros(like, std::vector<int64_t>(shape), type);
}

/// For a fresh result on the CPU as large as weights: its pages cost less to make when they are huge.
inline void advise_huge_pages(const Tensor& fresh) {
  if (fresh.numel() > 0) advise_huge_pages(fresh.mutable_data_ptr(), fresh.numel() * fresh.element_size());
}

/// The values of `tensor` in one row-major block; the tensor itself where it is one already.
inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

inline std::optional<Tensor> as_contiguous(const std::optional<Tensor>& tensor) {
  return tensor ? std::optional(as_contiguous(*tensor)) : std::nullopt;
}

inline ScalarType accumulate_type(ScalarType type) {
  return type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
const T* data(const std::optional<Tensor>& tensor) {
  return tensor ? data<T>(*tensor) : nullptr;
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

/// Null where a result is empty: it is not wanted, or there is nothing to write.
template <class T>
T* data_if_any(const Tensor& result) {
  return result.numel() > 0 ? mutable_data<T>(result) : nullptr;
}

template <class T>
struct Type {
  using type = T;
};

/// Calls f(Type<T>{}) with T the element type of `type`, which must be floating (check_floating).
template <class F>
decltype(auto) dispatch_floating(ScalarType type, F&& f) {
  switch (type) {
    case ScalarType::Double:
      return f(Type<double>{});
    case ScalarType::BFloat16:
      return f(Type<bfloat16>{});
    case ScalarType::Half:
      return f(Type<half>{});
    default:
      return f(Type<float>{});
  }
}

}  // namespace anabranch
