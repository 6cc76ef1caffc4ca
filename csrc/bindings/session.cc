// Session: tokens in, logits out.
#include "engine/session.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/cancel.h"
#include "bindings/tokens.h"
#include "engine/forward.h"
#include "engine/session_file.h"

namespace gptoss::bindings {
namespace {

LogitsWanted logits_wanted_of(const std::string& name) {
  if (name == "last") return LogitsWanted::kLast;
  if (name == "all") return LogitsWanted::kAll;
  if (name == "none") return LogitsWanted::kNone;
  throw InvalidArgument(
      cat("[forward] logits: expected 'last', 'all' or 'none', got '", name, "'"));
}

// Throws OutOfMemory with the size before numpy tries: all logits of a long text are gigabytes.
py::array_t<float> logits_array(std::int64_t rows, std::int64_t vocab_size) {
  try {
    return py::array_t<float>({rows, vocab_size});
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_MemoryError)) throw;
    throw OutOfMemory(cat("[forward] expected ", rows * vocab_size * 4, " bytes for ", rows,
                          " rows of logits, the system has less; forward fewer tokens at a time, "
                          "or use score() for log-probabilities"));
  }
}

py::object forward(Session& session, const py::object& tokens_object, const std::string& logits) {
  const std::vector<std::int32_t> tokens = tokens_of(tokens_object, "forward");
  const LogitsWanted wanted = logits_wanted_of(logits);
  const std::int64_t rows = wanted == LogitsWanted::kAll    ? std::ssize(tokens)
                            : wanted == LogitsWanted::kLast ? 1
                                                            : 0;
  py::array_t<float> out = logits_array(rows, session.vocab_size());
  float* data = out.mutable_data();
  {
    const py::gil_scoped_release release;
    session.forward(tokens, wanted, data, signal_check());
  }
  if (wanted == LogitsWanted::kNone) return py::none();
  if (wanted == LogitsWanted::kAll) return out;
  return out.reshape({session.vocab_size()});
}

py::array_t<float> forward_forced(Session& session, const py::object& tokens_object,
                                  const py::array& experts) {
  const std::vector<std::int32_t> tokens = tokens_of(tokens_object, "forward");
  const py::ssize_t layers = experts.ndim() == 3 ? experts.shape(0) : 0;
  const py::ssize_t choices = experts.ndim() == 3 ? experts.shape(2) : 0;
  const std::int32_t* ids = block_of<const std::int32_t>(
      experts, "forward", "experts", {layers, static_cast<py::ssize_t>(tokens.size()), choices});
  py::array_t<float> out = logits_array(std::ssize(tokens), session.vocab_size());
  float* data = out.mutable_data();
  const py::gil_scoped_release release;
  session.forward_forced(tokens, {ids, static_cast<std::size_t>(experts.size())}, data);
  return out;
}

py::array_t<float> score(Session& session, const py::object& tokens_object) {
  const std::vector<std::int32_t> tokens = tokens_of(tokens_object, "score");
  const std::vector<float> scores = [&] {
    const py::gil_scoped_release release;
    return session.score(tokens, signal_check());
  }();
  return py::array_t<float>(std::ssize(scores), scores.data());
}

py::list forward_batch_of(const py::list& entries) {
  std::vector<std::vector<std::int32_t>> tokens;
  std::vector<BatchItem> items;
  py::list results;
  for (const py::handle entry : entries) {
    const auto [session, ids] = entry.cast<std::pair<std::shared_ptr<Session>, py::object>>();
    GPTOSS_REQUIRE(InvalidArgument, session != nullptr,
                   "[forward_batch] expected (session, tokens) pairs, got None for a session");
    tokens.push_back(tokens_of(ids, "forward_batch"));
    py::array_t<float> out(session->vocab_size());
    items.push_back({session, {}, LogitsWanted::kLast, out.mutable_data()});
    results.append(out);
  }
  for (std::size_t i = 0; i < items.size(); ++i) items[i].tokens = tokens[i];
  const py::gil_scoped_release release;
  forward_batch(items, signal_check());
  return results;
}

}  // namespace

void bind_session(py::module_& module) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<Session, std::shared_ptr<Session>>(module, "Session")
      .def_property_readonly("tokens", &Session::tokens)
      .def_property_readonly("position", &Session::position)
      .def_property_readonly("cached", &Session::cached)
      .def_property_readonly("max_tokens", &Session::max_tokens)
      .def_property_readonly("closed", &Session::closed)
      .def_property_readonly("marks", &Session::marks)
      .def("forward", &forward, py::arg("tokens"), py::arg("logits"))
      .def("forward_forced", &forward_forced, py::arg("tokens"), py::arg("experts"))
      .def("score", &score, py::arg("tokens"))
      .def("fork", &Session::fork, Unlocked())
      .def("rewind", &Session::rewind, py::arg("position"), Unlocked())
      .def("mark", &Session::mark, Unlocked())
      .def(
          "save", [](Session& session, const std::string& path) { save_session(session, path); },
          py::arg("path"), Unlocked())
      .def("close", &Session::close, Unlocked());
  module.def("forward_batch", &forward_batch_of, py::arg("entries"));
}

}  // namespace gptoss::bindings
