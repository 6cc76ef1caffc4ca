#include "bindings/bindings.h"

PYBIND11_MODULE(_core, module) {
  module.doc() = "The compiled core of gpt_oss_native; its public face is the Python package.";
  gptoss::bindings::bind_errors(module);
  gptoss::bindings::bind_system(module);
  gptoss::bindings::bind_ops(module);
  gptoss::bindings::bind_model(module);
  gptoss::bindings::bind_session(module);
  gptoss::bindings::bind_sampler(module);
  gptoss::bindings::bind_generation(module);
}
