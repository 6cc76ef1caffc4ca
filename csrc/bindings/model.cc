// Model: loading, memory, profile.
#include "engine/model.h"

#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/device.h"
#include "bindings/tokens.h"
#include "engine/session.h"
#include "model/yarn.h"

namespace gptoss::bindings {
namespace {

// `config` is gpt_oss_native.checkpoint.ModelConfig; its values are checked again by the core.
ModelConfig config_of(const py::object& config) {
  const auto size = [&](const char* name) { return config.attr(name).cast<std::int64_t>(); };
  const auto real = [&](const char* name) { return config.attr(name).cast<double>(); };
  ModelConfig c;
  c.num_layers = size("num_layers");
  c.hidden_size = size("hidden_size");
  c.intermediate_size = size("intermediate_size");
  c.num_experts = size("num_experts");
  c.experts_per_token = size("experts_per_token");
  c.num_heads = size("num_heads");
  c.num_kv_heads = size("num_kv_heads");
  c.head_dim = size("head_dim");
  c.vocab_size = size("vocab_size");
  c.sliding_window = size("sliding_window");
  c.layer_is_sliding = config.attr("layer_windows").cast<std::vector<bool>>();
  c.max_context = size("max_context");
  c.rms_norm_eps = static_cast<float>(real("rms_norm_eps"));
  c.swiglu_limit = static_cast<float>(real("swiglu_limit"));
  c.swiglu_alpha = static_cast<float>(real("swiglu_alpha"));
  c.rope_theta = real("rope_theta");
  c.rope_factor = real("rope_factor");
  c.rope_original_context = real("rope_original_context");
  c.rope_beta_fast = real("rope_beta_fast");
  c.rope_beta_slow = real("rope_beta_slow");
  c.rope_truncate = config.attr("rope_truncate").cast<bool>();
  c.validate();
  return c;
}

template <typename Choice>
Choice choice_of(const char* name, const std::string& value,
                 std::initializer_list<std::pair<const char*, Choice>> choices) {
  std::string known;
  for (const auto& [text, choice] : choices) {
    if (value == text) return choice;
    known += cat(known.empty() ? "'" : ", '", text, "'");
  }
  throw InvalidArgument(cat("[load_model] ", name, ": expected ", known, ", got '", value, "'"));
}

std::vector<CheckpointFile> files_of(const py::object& checkpoint) {
  std::vector<CheckpointFile> files;
  const auto sizes = checkpoint.attr("file_sizes").cast<std::vector<std::int64_t>>();
  for (const py::handle path : checkpoint.attr("files")) {
    files.push_back({py::str(path).cast<std::string>(), sizes.at(files.size())});
  }
  return files;
}

std::vector<TensorRecord> records_of(const py::object& checkpoint) {
  std::vector<TensorRecord> records;
  for (const py::handle record : checkpoint.attr("tensors").attr("values")()) {
    records.push_back(
        {record.attr("name").cast<std::string>(), record.attr("file").cast<std::int64_t>(),
         record.attr("dtype").cast<std::string>(),
         record.attr("shape").cast<std::vector<std::int64_t>>(),
         record.attr("begin").cast<std::int64_t>(), record.attr("end").cast<std::int64_t>()});
  }
  return records;
}

std::unique_ptr<Model> load_model(const py::object& checkpoint, const std::string& device,
                                  const std::string& precision, const std::string& dense,
                                  int num_threads, const std::optional<std::string>& isa, bool copy,
                                  bool lock, bool check_scales,
                                  std::optional<std::uint64_t> synthetic_seed) {
  const ModelConfig config = config_of(checkpoint.attr("config"));
  const CheckpointOptions checkpoint_options{
      .layout = choice_of("layout", checkpoint.attr("layout").cast<std::string>(),
                          {std::pair{"huggingface", CheckpointLayout::kHuggingFace},
                           std::pair{"original", CheckpointLayout::kOriginal}}),
      .map_mode = copy ? MapMode::kCopy : MapMode::kShared,
      .lock = lock,
      .check_scales = check_scales};
  const DeviceName on = device_of(device, "load_model");
  const BackendOptions options{
      .precision = choice_of(
          "precision", precision,
          {std::pair{"default", Precision::kDefault}, std::pair{"float32", Precision::kFloat32}}),
      .dense =
          choice_of("dense", dense,
                    {std::pair{"bf16", DenseFormat::kBf16}, std::pair{"int8", DenseFormat::kInt8}}),
      .num_threads = num_threads,
      .isa = isa ? std::optional(isa_from_name(*isa)) : std::nullopt,
      .device_index = on.index};
  const BackendFactory factory =
      on.kind == DeviceKind::kCuda ? make_cuda_backend : make_cpu_backend;
  if (synthetic_seed) {
    GPTOSS_REQUIRE(InvalidArgument, on.kind == DeviceKind::kCuda,
                   "[load_model] expected device='cuda' for synthetic weights, which are made on "
                   "the device, got '",
                   device, "'; write a checkpoint with `gpt-oss-native synthesize` instead");
    MappedCheckpoint nothing;
    nothing.synthetic_seed = synthetic_seed;
    const py::gil_scoped_release release;
    return std::make_unique<Model>(config, std::move(nothing), options, factory);
  }
  const auto files = files_of(checkpoint);
  const auto records = records_of(checkpoint);
  const py::gil_scoped_release release;
  return std::make_unique<Model>(config, map_checkpoint(config, files, records, checkpoint_options),
                                 options, factory);
}

py::dict memory_of(const Model& model) {
  const MemoryReport report = [&] {
    const py::gil_scoped_release release;
    return model.memory();
  }();
  py::dict result;
  result["weights"] = report.weights_bytes;
  result["mapped"] = report.mapped_bytes;
  result["kv_cache_full"] = report.kv_bytes[static_cast<int>(KvGroup::kFull)];
  result["kv_cache_window"] = report.kv_bytes[static_cast<int>(KvGroup::kWindow)];
  result["kv_cache_free"] = report.kv_free_bytes;
  result["marks"] = report.marks_bytes;
  result["workspace"] = report.workspace_bytes;
  result["sessions"] = report.num_sessions;
  return result;
}

py::dict trace_of(const Model& model) {
  py::dict result;
  for (const auto& [zone, total] : model.trace_totals()) {
    result[zone.c_str()] = py::make_tuple(total.count, total.seconds);
  }
  return result;
}

}  // namespace

void bind_model(py::module_& module) {
  py::class_<Model>(module, "Model")
      .def(py::init(&load_model), py::arg("checkpoint"), py::kw_only(), py::arg("device"),
           py::arg("precision"), py::arg("dense"), py::arg("num_threads"), py::arg("isa"),
           py::arg("copy"), py::arg("lock"), py::arg("check_scales"),
           py::arg("synthetic_seed") = py::none())
      .def("session", &Model::session, py::arg("max_tokens"))
      .def("restore", &Model::restore, py::arg("path"), py::call_guard<py::gil_scoped_release>())
      .def("describe", &Model::describe)
      .def("memory", &memory_of)
      .def(
          "set_banned_tokens",
          [](Model& model, const py::object& tokens) {
            model.set_banned_tokens(tokens_of(tokens, "set_banned_tokens"));
          },
          py::arg("tokens"))
      .def("enable_trace", &Model::enable_trace, py::arg("on"),
           py::call_guard<py::gil_scoped_release>())
      .def("trace_totals", &trace_of)
      .def("clear_trace", &Model::clear_trace, py::call_guard<py::gil_scoped_release>())
      .def("close", &Model::close, py::call_guard<py::gil_scoped_release>())
      .def_property_readonly("closed", &Model::closed);

  // For tests: the rotary table of a config, cosines and sines [positions][head_dim / 2].
  module.def(
      "yarn_angles",
      [](const py::object& config, const std::vector<std::int64_t>& positions) {
        const Yarn yarn(config_of(config));
        const py::ssize_t rows = static_cast<py::ssize_t>(positions.size());
        py::array_t<float> cos({rows, static_cast<py::ssize_t>(kHeadDim / 2)});
        py::array_t<float> sin({rows, static_cast<py::ssize_t>(kHeadDim / 2)});
        for (py::ssize_t i = 0; i < rows; ++i) {
          yarn.angles(positions[static_cast<std::size_t>(i)], cos.mutable_data(i, 0),
                      sin.mutable_data(i, 0));
        }
        return py::make_tuple(cos, sin);
      },
      py::arg("config"), py::arg("positions"));
}

}  // namespace gptoss::bindings
