// Python's keys and values as the words of an index, and back.
//
// As in a dict, equal numbers are one key: 1, 1.0 and numpy's 1 all find the key 1. What is stored is stricter: an
// int64 key is an integer, and a float64 key an integer only where a double can hold it.
//
// Only functions of Python's stable interface: one binary then serves every Python from 3.12 on.
#pragma once

#include <nanobind/nanobind.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <vector>

#include "anabranch/index/key.hpp"

namespace anabranch {

namespace nb = nanobind;

enum class HostKey : int { int64, uint64, float64, pair };
enum class HostValue : int { int64, float64 };
using HostWords = IndexKey<2>;

/// What is wrong with an object as a key; `unstored` finds what equals it but is not of the type that is kept.
enum class KeyFault { none, unstored, type, range, nan };

inline KeyFault word_of_long(PyObject* object, bool is_unsigned, int64_t& word) {
  if (is_unsigned) {
    const uint64_t key = PyLong_AsUnsignedLongLong(object);
    if (key == ~uint64_t{0} && PyErr_Occurred()) {
      PyErr_Clear();
      return KeyFault::range;
    }
    word = IndexKeyTraits<uint64_t>::to_words(key)[0];
    return KeyFault::none;
  }
  int overflow;
  word = PyLong_AsLongLongAndOverflow(object, &overflow);
  return overflow ? KeyFault::range : KeyFault::none;
}

inline KeyFault word_of_integer(PyObject* object, bool is_unsigned, int64_t& word) {
  if (PyLong_Check(object)) [[likely]]
    return word_of_long(object, is_unsigned, word);
  nb::object number;
  KeyFault fault = KeyFault::none;
  if (PyFloat_Check(object)) {
    const double value = PyFloat_AsDouble(object);
    if (!(std::floor(value) == value) || std::isinf(value)) return KeyFault::type;
    number = nb::steal(PyLong_FromDouble(value));
    fault = KeyFault::unstored;
  } else if (PyIndex_Check(object)) {
    number = nb::steal(PyNumber_Index(object));
  }
  if (!number.is_valid()) {
    PyErr_Clear();  // of an array, say: __index__ is there and refuses
    return KeyFault::type;
  }
  const KeyFault of_number = word_of_long(number.ptr(), is_unsigned, word);
  return of_number == KeyFault::none ? fault : of_number;
}

inline bool has_float(PyObject* object) {
  PyTypeObject* const type = Py_TYPE(object);
  return PyType_GetSlot(type, Py_nb_float) || PyType_GetSlot(type, Py_nb_index);
}

inline KeyFault double_of(PyObject* object, double& number) {
  if (PyFloat_Check(object)) [[likely]] {
    number = PyFloat_AsDouble(object);
    return KeyFault::none;
  }
  if (!has_float(object)) return KeyFault::type;
  const nb::object as_float = nb::steal(PyNumber_Float(object));
  if (!as_float.is_valid()) {
    const bool overflow = PyErr_ExceptionMatches(PyExc_OverflowError);
    PyErr_Clear();
    return overflow ? KeyFault::range : KeyFault::type;
  }
  number = PyFloat_AsDouble(as_float.ptr());
  return KeyFault::none;
}

inline KeyFault word_of_float(PyObject* object, int64_t& word) {
  double number;
  const KeyFault fault = double_of(object, number);
  if (fault != KeyFault::none) return fault;
  if (std::isnan(number)) return KeyFault::nan;
  if (PyLong_Check(object) && std::fabs(number) >= 0x1p53) {
    const nb::object back = nb::steal(PyLong_FromDouble(number));
    if (PyObject_RichCompareBool(back.ptr(), object, Py_EQ) != 1) return KeyFault::range;
  }
  word = IndexKeyTraits<double>::to_words(number)[0];
  return KeyFault::none;
}

inline KeyFault words_of_key(HostKey kind, PyObject* object, HostWords& words) {
  switch (kind) {
    case HostKey::int64:
      return word_of_integer(object, false, words[0]);
    case HostKey::uint64:
      return word_of_integer(object, true, words[0]);
    case HostKey::float64:
      return word_of_float(object, words[0]);
    default:
      break;
  }
  if (!PyTuple_Check(object) || PyTuple_Size(object) != 2) return KeyFault::type;
  const KeyFault first = word_of_integer(PyTuple_GetItem(object, 0), false, words[0]);
  const KeyFault second = word_of_integer(PyTuple_GetItem(object, 1), false, words[1]);
  return std::max(first, second);
}

/// Raises for a key that cannot be stored, or, as a bound, not be compared with.
inline void raise_fault(const char* op, const char* what, HostKey kind, PyObject* object, KeyFault fault) {
  static constexpr const char* must_be[] = {
      "an int of 64 bits; keep larger ones apart, or make the index with key=\"uint64\" or \"float64\"",
      "an int from 0 to 2**64 - 1; shift negative ones, or make the index with key=\"int64\"",
      "a number that a float64 holds; convert it with float()", "a tuple of two ints of 64 bits; convert it"};
  const char* wanted = must_be[static_cast<int>(kind)];
  if (fault == KeyFault::nan) {
    PyErr_Format(PyExc_ValueError, "%s: %s is NaN, must be a number; drop it or give it a number of its own", op, what);
  } else {
    PyErr_Format(fault == KeyFault::range ? PyExc_ValueError : PyExc_TypeError, "%s: %s is %R, must be %s", op, what,
                 object, wanted);
  }
  throw nb::python_error();
}

/// A new reference, or null with Python's error set.
inline PyObject* key_object(HostKey kind, const int64_t* words) {
  switch (kind) {
    case HostKey::int64:
      return PyLong_FromLongLong(words[0]);
    case HostKey::uint64:
      return PyLong_FromUnsignedLongLong(IndexKeyTraits<uint64_t>::from_words({words[0]}));
    case HostKey::float64:
      return PyFloat_FromDouble(IndexKeyTraits<double>::from_words({words[0]}));
    default:
      return Py_BuildValue("(LL)", static_cast<long long>(words[0]), static_cast<long long>(words[1]));
  }
}

inline PyObject* value_object(HostValue kind, uint64_t value) {
  return kind == HostValue::int64 ? PyLong_FromLongLong(static_cast<int64_t>(value))
                                  : PyFloat_FromDouble(std::bit_cast<double>(value));
}

inline uint64_t value_of(const char* op, HostValue kind, PyObject* object) {
  int64_t word = 0;
  double number = 0;
  const KeyFault fault = kind == HostValue::int64 ? word_of_integer(object, false, word) : double_of(object, number);
  if (fault == KeyFault::none) return kind == HostValue::int64 ? word : std::bit_cast<uint64_t>(number);
  PyErr_Format(fault == KeyFault::range ? PyExc_ValueError : PyExc_TypeError, "%s: value is %R, must be %s", op, object,
               kind == HostValue::int64 ? "an int of 64 bits; or make the index with value=\"float64\""
                                        : "a number that a float64 holds; convert it with float()");
  throw nb::python_error();
}

/// An array's keys, given by their bits, as words: where they lie if they are words already.
class HostKeyArray {
 public:
  HostKeyArray(const char* op, HostKey kind, const int64_t* keys, int64_t n) : words_(keys) {
    if (kind == HostKey::int64 || kind == HostKey::pair) return;
    copy_.resize(n);
    for (int64_t i = 0; i < n; ++i) {
      if (kind == HostKey::uint64) {
        copy_[i] = IndexKeyTraits<uint64_t>::to_words(static_cast<uint64_t>(keys[i]))[0];
      } else {
        const auto key = std::bit_cast<double>(keys[i]);
        check(!std::isnan(key), op, ": keys[", i, "] is NaN, must be a number; drop it or give it a number of its own");
        copy_[i] = IndexKeyTraits<double>::to_words(key)[0];
      }
    }
    words_ = copy_.data();
  }

  const int64_t* words() const { return words_; }

 private:
  const int64_t* words_;
  std::vector<int64_t> copy_;
};

/// Words become the bits of keys, in place.
inline void keys_of_words(HostKey kind, int64_t* words, int64_t n) {
  if (kind == HostKey::uint64) {
    for (int64_t i = 0; i < n; ++i) words[i] = static_cast<int64_t>(IndexKeyTraits<uint64_t>::from_words({words[i]}));
  } else if (kind == HostKey::float64) {
    for (int64_t i = 0; i < n; ++i) words[i] = std::bit_cast<int64_t>(IndexKeyTraits<double>::from_words({words[i]}));
  }
}

}  // namespace anabranch
