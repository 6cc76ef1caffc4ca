// The op table on numpy arrays. bf16 arrays travel as uint16.
#include <pybind11/stl.h>

#include <mutex>

#include "backend/op_table.h"
#include "bindings/arrays.h"
#include "bindings/bindings.h"
#include "bindings/device.h"
#include "bindings/op_array.h"
#include "engine/sampler.h"

namespace gptoss::bindings {
namespace {

using Array = OpArray;

const std::int32_t* indices(const Array& array, const char* op, const char* name, std::int64_t size,
                            std::int64_t limit) {
  const std::int32_t* data = vector_of<const std::int32_t>(array, op, name, size);
  if (array.on_device) return data;  // whoever keeps ids there answers for them
  for (std::int64_t i = 0; i < size; ++i) {
    GPTOSS_REQUIRE(InvalidArgument, data[i] >= 0 && data[i] < limit, "[", op, "] ", name, '[', i,
                   "]: expected 0 to ", limit - 1, ", got ", data[i]);
  }
  return data;
}

std::int64_t multiple_of(std::int64_t value, std::int64_t unit, const char* op, const char* name) {
  GPTOSS_REQUIRE(InvalidArgument, value > 0 && value % unit == 0, "[", op, "] expected ", name,
                 " to be a positive multiple of ", unit, ", got ", value);
  return value;
}

Epilogue epilogue_of(bool accumulate) {
  return accumulate ? Epilogue::kAdd : Epilogue::kStore;
}

KvDtype kv_dtype_of(const std::string& name) {
  if (name == "bf16") return KvDtype::kBf16;
  if (name == "float32") return KvDtype::kFloat32;
  throw InvalidArgument(cat("[attention] expected kv_dtype 'bf16' or 'float32', got '", name, "'"));
}

// Arguments are checked with the GIL held, the kernels run without it, one call at a time.
class Ops {
 public:
  explicit Ops(std::unique_ptr<OpTable> table) : table_(std::move(table)) {}

  void time_kernels(int repeats, std::size_t evict_bytes) {
    GPTOSS_REQUIRE(InvalidArgument, repeats >= 0,
                   "[time_kernels] repeats: expected 0 or more, got ", repeats);
    const std::lock_guard lock(mutex_);
    table_->time_kernels({repeats, evict_bytes});
  }

  std::vector<double> kernel_seconds() {
    const std::lock_guard lock(mutex_);
    return table_->kernel_seconds();
  }

  void embed(const Array& tokens, const Array& table, const Array& out) {
    const auto table_view = matrix_of<const bf16>(table, "embed", "table");
    const auto out_view = matrix_of<float>(out, "embed", "out", -1, table_view.cols);
    const EmbedArgs args{indices(tokens, "embed", "tokens", out_view.rows, table_view.rows),
                         table_view, out_view};
    run([&](OpTable& ops) { ops.embed(args); });
  }

  void rms_norm(const Array& x, const Array& scale, float eps, const Array& out) {
    const auto view = matrix_of<const float>(x, "rms_norm", "x");
    const RmsNormArgs args{view, vector_of<const bf16>(scale, "rms_norm", "scale", view.cols), eps,
                           matrix_of<float>(out, "rms_norm", "out", view.rows, view.cols)};
    run([&](OpTable& table) { table.rms_norm(args); });
  }

  void linear(const Array& x, const Array& weight, const std::optional<Array>& bias,
              bool accumulate, bool int8, const Array& out, bool float32) {
    const auto view = matrix_of<const float>(x, "linear", "x");
    const auto w = matrix_of<const bf16>(weight, "linear", "weight", -1, view.cols);
    if (int8) multiple_of(view.cols, kMxBlock, "linear_int8", "columns");
    GPTOSS_REQUIRE(InvalidArgument, !(int8 && float32),
                   "[linear] expected dense='bf16' with precision='float32', got dense='int8'; its "
                   "activations are integers");
    const LinearBf16Args args{
        view, w, bias ? vector_of<const bf16>(*bias, "linear", "bias", w.rows) : nullptr,
        epilogue_of(accumulate), matrix_of<float>(out, "linear", "out", view.rows, w.rows)};
    run([&](OpTable& table) {
      if (int8) return table.linear_int8(args);
      float32 ? table.linear_bf16_float32(args) : table.linear_bf16(args);
    });
  }

  void quantize_int8(const Array& x, const Array& q, const Array& scales) {
    const auto view = matrix_of<const float>(x, "quantize_int8", "x");
    const std::int64_t cols = multiple_of(view.cols, kMxBlock, "quantize_int8", "columns");
    const QuantizeInt8OpArgs args{
        view, block_of<std::int8_t>(q, "quantize_int8", "q", {view.rows, cols}),
        block_of<float>(scales, "quantize_int8", "scales", {view.rows, cols / kMxBlock})};
    run([&](OpTable& table) { table.quantize_int8(args); });
  }

  void quantize_int15(const Array& x, const Array& codes, const Array& scales) {
    const auto view = matrix_of<const float>(x, "quantize_int15", "x");
    const std::int64_t cols = multiple_of(view.cols, kMxBlock, "quantize_int15", "columns");
    const QuantizeInt15OpArgs args{
        view, block_of<std::int16_t>(codes, "quantize_int15", "codes", {view.rows, cols}),
        block_of<float>(scales, "quantize_int15", "scales", {view.rows, cols / kMxBlock})};
    run([&](OpTable& table) { table.quantize_int15(args); });
  }

  void linear_mxfp4(const Array& x, const Array& blocks, const Array& scales, const Array& bias,
                    const Array& x_rows, const Array& out_rows, bool int8, const Array& out) {
    const char* op = "linear_mxfp4";
    const auto view = matrix_of<const float>(x, op, "x");
    const auto out_view = matrix_of<float>(out, op, "out");
    const std::int64_t cols = multiple_of(view.cols, kMxBlock, op, "columns");
    const std::int64_t rows = multiple_of(out_view.cols, kMxBlock, op, "rows");
    const std::int64_t num_rows = x_rows.size();
    const LinearMxfp4OpArgs args{
        .x = view,
        .weight = {block_of<const std::uint8_t>(blocks, op, "blocks",
                                                {rows, cols / kMxBlock, kMxBlockBytes}),
                   block_of<const std::uint8_t>(scales, op, "scales", {rows, cols / kMxBlock}),
                   rows, cols},
        .bias = vector_of<const bf16>(bias, op, "bias", rows),
        .x_rows = indices(x_rows, op, "x_rows", num_rows, view.rows),
        .out_rows = indices(out_rows, op, "out_rows", num_rows, out_view.rows),
        .num_rows = num_rows,
        .out = out_view};
    run([&](OpTable& table) {
      int8 ? table.linear_mxfp4_int8(args) : table.linear_mxfp4_float32(args);
    });
  }

  void swiglu(const Array& gate_up, float limit, float alpha, const Array& out) {
    const auto out_view = matrix_of<float>(out, "swiglu", "out");
    const SwigluArgs args{
        matrix_of<const float>(gate_up, "swiglu", "gate_up", out_view.rows, 2 * out_view.cols),
        limit, alpha, out_view};
    run([&](OpTable& table) { table.swiglu(args); });
  }

  void rope(const Array& x, const Array& cos_sin) {
    const auto view = matrix_of<float>(x, "rope", "x");
    const std::int64_t size = multiple_of(view.cols, kHeadDim, "rope", "columns");
    const RopeArgs args{view, size / kHeadDim,
                        matrix_of<const float>(cos_sin, "rope", "cos_sin", view.rows, kHeadDim)};
    run([&](OpTable& table) { table.rope(args); });
  }

  void attention(const Array& q, const Array& k, const Array& v, const Array& sinks,
                 std::int64_t window, const std::string& kv_dtype, bool split, const Array& out) {
    const char* op = "attention";
    const auto q_view = matrix_of<const float>(q, op, "q");
    const auto k_view = matrix_of<const float>(k, op, "k");
    const std::int64_t heads = multiple_of(q_view.cols, kHeadDim, op, "columns of q") / kHeadDim;
    const std::int64_t kv_heads = multiple_of(k_view.cols, kHeadDim, op, "columns of k") / kHeadDim;
    multiple_of(heads, kv_heads, op, "query heads");
    GPTOSS_REQUIRE(InvalidArgument, heads / kv_heads <= kMaxHeadsPerKvHead,
                   "[attention] expected at most ", kMaxHeadsPerKvHead,
                   " query heads for each kv head, got ", heads / kv_heads);
    GPTOSS_REQUIRE(InvalidArgument, q_view.rows <= k_view.rows, "[attention] expected at least ",
                   q_view.rows, " keys, one for each query, got ", k_view.rows);
    GPTOSS_REQUIRE(InvalidArgument, window >= 0, "[attention] expected a window of 0 (full) or ",
                   "more keys, got ", window);
    const AttentionOpArgs args{.q = q_view,
                               .k = k_view,
                               .v = matrix_of<const float>(v, op, "v", k_view.rows, k_view.cols),
                               .window = window,
                               .sinks = vector_of<const bf16>(sinks, op, "sinks", heads),
                               .num_heads = heads,
                               .num_kv_heads = kv_heads,
                               .dtype = kv_dtype_of(kv_dtype),
                               .way = split ? AttentionWay::kSplit : AttentionWay::kWhole,
                               .out = matrix_of<float>(out, op, "out", q_view.rows, q_view.cols)};
    run([&](OpTable& table) { table.attention(args); });
  }

  void router_topk(const Array& logits, const Array& expert_ids, const Array& weights,
                   const std::optional<Array>& forced) {
    const char* op = "router_topk";
    const auto view = matrix_of<const float>(logits, op, "logits");
    const std::int64_t k = expert_ids.ndim() == 2 ? expert_ids.shape(1) : 0;
    GPTOSS_REQUIRE(InvalidArgument, k >= 1 && k <= view.cols, "[router_topk] expected 1 to ",
                   view.cols, " experts a token, got ", k);
    const std::int32_t* forced_ids = nullptr;
    if (forced) {
      forced_ids = block_of<const std::int32_t>(*forced, op, "forced", {view.rows, k});
      for (std::int64_t i = 0; i < view.rows * k && !forced->on_device; ++i) {
        GPTOSS_REQUIRE(InvalidArgument, forced_ids[i] >= 0 && forced_ids[i] < view.cols,
                       "[router_topk] forced: expected 0 to ", view.cols - 1, ", got ",
                       forced_ids[i]);
      }
    }
    const RouterTopkArgs args{view, k,
                              block_of<std::int32_t>(expert_ids, op, "expert_ids", {view.rows, k}),
                              block_of<float>(weights, op, "weights", {view.rows, k}), forced_ids};
    run([&](OpTable& table) { table.router_topk(args); });
  }

  // `samplers`: one a row, each as it would draw next; their state stays.
  void draw_tokens(const Array& logits, const py::list& samplers, const Array& tokens) {
    const char* op = "draw_tokens";
    const auto view = matrix_of<const float>(logits, op, "logits");
    GPTOSS_REQUIRE(InvalidArgument, static_cast<std::int64_t>(samplers.size()) == view.rows,
                   "[draw_tokens] expected a sampler for each of ", view.rows, " rows, got ",
                   samplers.size());
    std::vector<DrawOptions> options;
    for (const py::handle sampler : samplers) {
      const auto wanted = sampler.cast<const Sampler&>().draw_options(0);
      GPTOSS_REQUIRE(
          InvalidArgument, wanted.has_value(),
          "[draw_tokens] expected samplers without penalties, bias or log-probabilities");
      options.push_back(*wanted);
    }
    const DrawTokensOpArgs args{view, options,
                                vector_of<std::int32_t>(tokens, op, "tokens", view.rows)};
    run([&](OpTable& table) { table.draw_tokens(args); });
  }

  void moe_combine(const Array& expert_out, const Array& weights, const Array& out) {
    const char* op = "moe_combine";
    const auto out_view = matrix_of<float>(out, op, "out");
    const std::int64_t k = weights.ndim() == 2 ? weights.shape(1) : 0;
    GPTOSS_REQUIRE(InvalidArgument, k >= 1, "[moe_combine] weights: expected ",
                   "[num_tokens][experts_per_token] with one expert or more, got ",
                   array_text(weights));
    const MoeCombineArgs args{
        matrix_of<const float>(expert_out, op, "expert_out", out_view.rows * k, out_view.cols),
        block_of<const float>(weights, op, "weights", {out_view.rows, k}), k, out_view};
    run([&](OpTable& table) { table.moe_combine(args); });
  }

 private:
  template <typename Body>
  void run(const Body& body) {
    const py::gil_scoped_release release;
    const std::lock_guard lock(mutex_);
    body(*table_);
  }

  std::unique_ptr<OpTable> table_;
  std::mutex mutex_;  // a table has one set of threads and scratch
};

}  // namespace

void bind_ops(py::module_& module) {
  py::class_<Ops>(module, "Ops")
      .def(py::init([](const std::optional<std::string>& isa, int num_threads,
                       const std::string& device) {
             const auto [kind, index] = device_of(device, "ops");
             if (kind == DeviceKind::kCuda) return std::make_unique<Ops>(make_cuda_ops(index));
             return std::make_unique<Ops>(make_cpu_ops(
                 isa ? std::optional(isa_from_name(*isa)) : std::nullopt, num_threads));
           }),
           py::kw_only(), py::arg("isa") = py::none(), py::arg("num_threads") = 0,
           py::arg("device") = "cpu")
      .def("time_kernels", &Ops::time_kernels, py::arg("repeats"), py::arg("evict_bytes") = 0)
      .def("kernel_seconds", &Ops::kernel_seconds)
      .def("embed", &Ops::embed, py::arg("tokens"), py::arg("table"), py::arg("out"))
      .def("rms_norm", &Ops::rms_norm, py::arg("x"), py::arg("scale"), py::arg("eps"),
           py::arg("out"))
      .def("linear", &Ops::linear, py::arg("x"), py::arg("weight"), py::arg("bias"),
           py::arg("accumulate"), py::arg("int8"), py::arg("out"), py::arg("float32") = false)
      .def("quantize_int8", &Ops::quantize_int8, py::arg("x"), py::arg("q"), py::arg("scales"))
      .def("quantize_int15", &Ops::quantize_int15, py::arg("x"), py::arg("codes"),
           py::arg("scales"))
      .def("linear_mxfp4", &Ops::linear_mxfp4, py::arg("x"), py::arg("blocks"), py::arg("scales"),
           py::arg("bias"), py::arg("x_rows"), py::arg("out_rows"), py::arg("int8"), py::arg("out"))
      .def("swiglu", &Ops::swiglu, py::arg("gate_up"), py::arg("limit"), py::arg("alpha"),
           py::arg("out"))
      .def("rope", &Ops::rope, py::arg("x"), py::arg("cos_sin"))
      .def("attention", &Ops::attention, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("sinks"),
           py::arg("window"), py::arg("kv_dtype"), py::arg("split"), py::arg("out"))
      .def("router_topk", &Ops::router_topk, py::arg("logits"), py::arg("expert_ids"),
           py::arg("weights"), py::arg("forced"))
      .def("moe_combine", &Ops::moe_combine, py::arg("expert_out"), py::arg("weights"),
           py::arg("out"))
      .def("draw_tokens", &Ops::draw_tokens, py::arg("logits"), py::arg("samplers"),
           py::arg("tokens"));
}

}  // namespace gptoss::bindings
