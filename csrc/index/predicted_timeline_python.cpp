// The class behind anabranch.index.PredictedTimeline. Methods hold the object's lock where Python has no global one.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <string>

#include "anabranch/index/predicted_timeline.hpp"
#include "host.hpp"

namespace anabranch {
namespace {

namespace nb = nanobind;

/// An integer of any type, as the C++ class takes it.
int64_t word_of(const char* op, const char* name, nb::handle object) {
  const nb::object number = nb::steal(PyNumber_Index(object.ptr()));
  if (!number.is_valid()) throw nb::python_error();
  int overflow;
  const int64_t word = PyLong_AsLongLongAndOverflow(number.ptr(), &overflow);
  check(!overflow, op, ": ", name, " is ", overflow ? nb::str(number).c_str() : "",
        ", must be an integer of 64 bits; give a number that counts something");
  return word;
}

}  // namespace

void bind_predicted_timeline(nb::module_& module) {
  constexpr const char* insert = "PredictedTimeline.insert";
  constexpr const char* connected = "PredictedTimeline.connected";
  const nb::lock_self lock;
  nb::class_<PredictedTimeline>(module, "PredictedTimelineBase")
      .def("__init__",
           [](PredictedTimeline* self, nb::handle num_nodes) {
             new (self) PredictedTimeline(word_of("PredictedTimeline", "num_nodes", num_nodes));
           })
      .def(
          "_insert",
          [](PredictedTimeline& self, nb::handle u, nb::handle v, nb::handle predicted_lifetime) {
            return self.insert(word_of(insert, "u", u), word_of(insert, "v", v),
                               word_of(insert, "predicted_lifetime", predicted_lifetime));
          },
          lock)
      .def(
          "_erase",
          [](PredictedTimeline& self, nb::handle edge) {
            self.erase(word_of("PredictedTimeline.erase", "edge", edge));
          },
          lock)
      .def(
          "_advance",
          [](PredictedTimeline& self, nb::handle events) {
            self.advance(word_of("PredictedTimeline.advance", "events", events));
          },
          lock)
      .def(
          "_connected",
          [](PredictedTimeline& self, nb::handle u, nb::handle v) {
            return self.connected(word_of(connected, "u", u), word_of(connected, "v", v));
          },
          lock)
      .def("_num_components", &PredictedTimeline::num_components, lock)
      .def("_next_expiry", &PredictedTimeline::next_expiry, lock)
      .def("_num_nodes", &PredictedTimeline::num_nodes, lock)
      .def("_num_edges", &PredictedTimeline::num_edges, lock)
      .def("_clock", &PredictedTimeline::clock, lock)
      .def("_unions", &PredictedTimeline::unions, lock)
      .def("_rebuilds", &PredictedTimeline::rebuilds, lock)
      .def("_recompute_unions", &PredictedTimeline::recompute_unions, lock);
}

}  // namespace anabranch
