// Lets Ctrl-C and other Python signal handlers stop native work between its chunks.
#pragma once

#include <pybind11/pybind11.h>

#include "engine/session.h"

namespace gptoss::bindings {

// For calls that run without the GIL, in the thread that made them.
inline CancelCheck signal_check() {
  return [] {
    const pybind11::gil_scoped_acquire acquire;
    if (PyErr_CheckSignals() != 0) throw pybind11::error_already_set();
  };
}

}  // namespace gptoss::bindings
