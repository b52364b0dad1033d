// The class behind anabranch.index.BSkipList. Single keys go through the type's own slots, where a call costs tens of
// nanoseconds less than through a method; what needs no speed is in Python.
#include <limits>
#include <optional>

#include "host_arrays.hpp"

namespace anabranch {
namespace {

HostIndex& index_of(PyObject* self) {
  if (!nb::inst_ready(self)) throw nb::type_error("BSkipList: the object is not initialised; call __init__ first");
  return *nb::inst_ptr<HostIndex>(self);
}

/// f(), or `failed` with Python's error set.
template <class F, class Result>
Result in_slot(Result failed, F&& f) noexcept {
  try {
    return f();
  } catch (nb::python_error& error) {
    error.restore();
  } catch (const nb::builtin_exception& error) {
    PyErr_SetString(PyExc_TypeError, error.what());
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
  }
  return failed;
}

// Objects become words before the memory is held: __index__ of a key may be anything, and close the index too.

bool find_key(const HostIndex& index, PyObject* key, uint64_t& value) {
  HostWords words;
  const KeyFault fault = words_of_key(index.key, key, words);
  const HostIndex::Held memory = index.hold();
  return fault <= KeyFault::unstored && index.functions.find(memory->view(), words.words, &value);
}

bool erase_key(const HostIndex& index, PyObject* key, uint64_t& value) {
  HostWords words;
  const KeyFault fault = words_of_key(index.key, key, words);
  const HostIndex::Held memory = index.hold();
  return fault <= KeyFault::unstored && index.functions.erase(memory->view(), words.words, &value);
}

/// The value that the key had, or what to return without it.
nb::object extract_object(const HostIndex& index, nb::handle key, nb::handle missing) {
  uint64_t value;
  if (!erase_key(index, key.ptr(), value)) return nb::borrow(missing);
  return nb::steal(value_object(index.value, value));
}

/// Whether the key was new.
bool insert_key(const HostIndex& index, const char* op, PyObject* key, PyObject* object, bool assign) {
  HostWords words;
  const KeyFault fault = words_of_key(index.key, key, words);
  if (fault != KeyFault::none) raise_fault(op, "key", index.key, key, fault);
  const uint64_t value = value_of(op, index.value, object);
  const HostIndex::Held memory = index.hold();
  const IndexStatus status = index.functions.insert(memory->view(), words.words, value, assign);
  if (status == IndexStatus::refused) index.raise_full(op);
  return status == IndexStatus::changed;
}

int raise_missing(PyObject* key) {
  const nb::object arguments = nb::steal(PyTuple_Pack(1, key));  // a tuple alone would be taken for several
  PyErr_SetObject(PyExc_KeyError, arguments.ptr());
  return -1;
}

Py_ssize_t length_slot(PyObject* self) {
  return in_slot(Py_ssize_t{-1}, [&] { return static_cast<Py_ssize_t>(index_of(self).size()); });
}

int contains_slot(PyObject* self, PyObject* key) {
  return in_slot(-1, [&] {
    uint64_t value;
    return static_cast<int>(find_key(index_of(self), key, value));
  });
}

PyObject* subscript_slot(PyObject* self, PyObject* key) {
  return in_slot(static_cast<PyObject*>(nullptr), [&]() -> PyObject* {
    const HostIndex& index = index_of(self);
    if (PySlice_Check(key)) return PyObject_CallMethod(self, "_slice", "O", key);
    uint64_t value;
    if (find_key(index, key, value)) [[likely]]
      return value_object(index.value, value);
    raise_missing(key);
    return nullptr;
  });
}

int assign_slot(PyObject* self, PyObject* key, PyObject* value) {
  return in_slot(-1, [&] {
    const HostIndex& index = index_of(self);
    uint64_t erased;
    if (!value) return erase_key(index, key, erased) ? 0 : raise_missing(key);
    insert_key(index, "BSkipList", key, value, true);
    return 0;
  });
}

PyType_Slot slots[] = {{Py_mp_length, reinterpret_cast<void*>(length_slot)},
                       {Py_sq_contains, reinterpret_cast<void*>(contains_slot)},
                       {Py_mp_subscript, reinterpret_cast<void*>(subscript_slot)},
                       {Py_mp_ass_subscript, reinterpret_cast<void*>(assign_slot)},
                       {0, nullptr}};

enum class Part : int { keys, values, items };

nb::object part_of(const HostIndex& index, Part part, const int64_t* words, uint64_t value) {
  nb::object key, object;
  if (part != Part::values) key = nb::steal(key_object(index.key, words));
  if (part != Part::keys) object = nb::steal(value_object(index.value, value));
  nb::object result = part == Part::keys ? key
                      : part == Part::values
                          ? object
                          : nb::steal(key && object ? PyTuple_Pack(2, key.ptr(), object.ptr()) : nullptr);
  if (!result.is_valid()) throw nb::python_error();
  return result;
}

/// Up to `limit` keys, values or items, and the last key, from which the next chunk goes on; None behind the last one.
nb::tuple chunk(const HostIndex& index, nb::handle minimum, nb::handle maximum, bool with_minimum, bool with_maximum,
                int64_t limit, bool reverse, int part) {
  HostBounds bounds("BSkipList.irange", index.key, minimum, maximum, with_minimum, with_maximum);
  const HostIndex::Held memory = index.hold();
  const IndexArena& arena = memory->view();
  const int w = index.key_words;
  std::vector<int64_t> keys(limit * w), values(limit);
  int64_t count = 0;
  if (!reverse && bounds.any) {
    count = index.functions.range(arena, bounds.first.words, bounds.last.words, limit, keys.data(), values.data());
  }
  while (reverse && bounds.any && count < limit) {
    uint64_t value;
    HostWords found{};
    if (!index.functions.last_until(arena, bounds.last.words, found.words, &value)) break;
    if (index.key == HostKey::pair ? found < bounds.first : found[0] < bounds.first[0]) break;
    std::copy_n(found.words, w, keys.data() + count * w);
    values[count++] = static_cast<int64_t>(value);
    bounds.last = found;
    bounds.any = HostBounds::step(index.key, bounds.last, false);
  }
  nb::list list;
  for (int64_t i = 0; i < count; ++i)
    list.append(part_of(index, static_cast<Part>(part), &keys[i * w], static_cast<uint64_t>(values[i])));
  if (count < limit) return nb::make_tuple(list, nb::none());
  return nb::make_tuple(list, part_of(index, Part::keys, &keys[(count - 1) * w], 0));
}

int64_t count_keys(const HostIndex& index, const char* op, nb::handle minimum, nb::handle maximum, bool with_minimum,
                   bool with_maximum) {
  const HostBounds bounds(op, index.key, minimum, maximum, with_minimum, with_maximum);
  const HostIndex::Memory memory = index.keep();
  const nb::gil_scoped_release unlocked;
  return bounds.any ? index.functions.range_count(memory->view(), bounds.first.words, bounds.last.words) : 0;
}

/// The item at `position` from the left, or None: all before it are read.
nb::object select(const HostIndex& index, int64_t position) {
  HostBounds rest("BSkipList.peekitem", index.key, nb::none(), nb::none(), true, true);
  constexpr int64_t stretch = 1 << 12;
  const int w = index.key_words;
  std::vector<int64_t> keys(stretch * w), values(stretch);
  int64_t count = 0;
  {
    const HostIndex::Memory memory = index.keep();
    const nb::gil_scoped_release unlocked;
    while (rest.any) {
      const int64_t limit = std::min(stretch, position + 1);
      count =
          index.functions.range(memory->view(), rest.first.words, rest.last.words, limit, keys.data(), values.data());
      if (count <= position && count < limit) return nb::none();
      if (count > position) break;
      position -= count;
      std::copy_n(&keys[(count - 1) * w], w, rest.first.words);
      rest.any = HostBounds::step(index.key, rest.first, true);
    }
  }
  if (!rest.any) return nb::none();
  return part_of(index, Part::items, &keys[position * w], static_cast<uint64_t>(values[position]));
}

}  // namespace

void bind_bskiplist(nb::module_& module) {
  using namespace nb::literals;
  nb::class_<HostIndex>(module, "BSkipListBase", nb::type_slots(slots))
      .def(nb::init<int, int, int64_t>())
      .def(
          "get",
          [](const HostIndex& index, nb::handle key, nb::handle otherwise) {
            uint64_t value;
            return find_key(index, key.ptr(), value) ? nb::steal(value_object(index.value, value))
                                                     : nb::borrow(otherwise);
          },
          "key"_a.none(), "default"_a = nb::none())
      .def(
          "_insert",
          [](const HostIndex& index, const char* op, nb::handle key, nb::handle value) {
            return insert_key(index, op, key.ptr(), value.ptr(), false);
          },
          "op"_a, "key"_a.none(), "value"_a.none())
      .def("_extract", extract_object, "key"_a.none(), "missing"_a.none())
      .def("_chunk", chunk, "minimum"_a.none(), "maximum"_a.none(), "with_minimum"_a, "with_maximum"_a, "limit"_a,
           "reverse"_a, "part"_a)
      .def("_count", count_keys, "op"_a, "minimum"_a.none(), "maximum"_a.none(), "with_minimum"_a, "with_maximum"_a)
      .def("_select", select)
      .def(
          "_collect",
          [](const HostIndex& index, const char* op, nb::handle minimum, nb::handle maximum, bool with_minimum,
             bool with_maximum, int64_t limit, bool exact) {
            return collect(index, HostBounds(op, index.key, minimum, maximum, with_minimum, with_maximum), limit,
                           exact);
          },
          "op"_a, "minimum"_a.none(), "maximum"_a.none(), "with_minimum"_a, "with_maximum"_a, "limit"_a, "exact"_a)
      .def("_find", find_in)
      .def("_lower_bound", lower_bound_in)
      .def("_insert_batch", insert_in)
      .def("_erase_batch", erase_in)
      .def("_bulk_load", bulk_load_in)
      .def("_validate",
           [](const HostIndex& index) {
             const HostIndex::Memory memory = index.keep();
             std::string problem;
             {
               const nb::gil_scoped_release unlocked;
               problem = validate_index(memory->view(), index.key_words);
             }
             return nb::str(problem.c_str());
           })
      .def("_clear", &HostIndex::clear)
      .def("close", &HostIndex::close)
      .def_prop_ro("closed", [](const HostIndex& index) { return !index.is_open(); })
      .def_prop_ro("memory_bytes", &HostIndex::memory_bytes);
}

}  // namespace anabranch
