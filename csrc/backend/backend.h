// The contract between the engine and a device: one coarse call a step. Factories are declared here
// and defined by the backend that is linked, so that linking decides what is there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "backend/batch.h"
#include "base/cpu_features.h"
#include "base/trace.h"
#include "model/checkpoint.h"
#include "model/kv_plan.h"
#include "model/model_config.h"

namespace gptoss {

enum class Precision { kDefault, kFloat32 };  // DESIGN: the numerics contract
enum class DenseFormat { kBf16, kInt8 };      // attention projections and unembedding

struct BackendOptions {
  Precision precision = Precision::kDefault;
  DenseFormat dense = DenseFormat::kBf16;
  int num_threads = 0;     // CPU; 0: default_num_threads()
  std::optional<Isa> isa;  // CPU; none: default_isa()
  int device_index = 0;    // CUDA
};

struct BackendMemory {
  std::size_t weights_bytes = 0;   // private copies; mapped files are not counted
  std::size_t kv_cache_bytes = 0;  // pages allocated now
  std::size_t workspace_bytes = 0;
};

// Not thread-safe: the engine's scheduler makes one call at a time.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual std::string describe() const = 0;  // "cpu avx512, 2 threads"
  virtual const KvPlan& kv_plan() const = 0;
  virtual int num_threads() const = 0;
  // Most tokens one forward takes; the engine cuts longer prompts.
  virtual std::int64_t max_batch_tokens() const = 0;

  // Storage for pages of keys and values; contents of a fresh page are unspecified.
  // Throws OutOfMemory; pages already held stay valid.
  virtual PageId allocate_page(KvGroup group) = 0;
  virtual void free_page(KvGroup group, PageId page) noexcept = 0;
  virtual void copy_page(KvGroup group, PageId from, PageId to) = 0;
  // kv_plan().page_bytes(group) bytes each, in the plan's layout.
  virtual void read_page(KvGroup group, PageId page, std::span<std::byte> out) = 0;
  virtual void write_page(KvGroup group, PageId page, std::span<const std::byte> in) = 0;

  // Writes keys and values of the new tokens to their pages and the wanted logits to
  // batch.logits. Tokens, positions and pages have been validated by the engine. A backend that
  // draws returns as soon as the step is queued if no logits are handed out; an error of the device
  // then shows at a later call.
  virtual void forward(const Batch& batch) = 0;

  // Whether segments may ask for draws.
  virtual bool can_draw() const { return false; }
  // Waits for a draw among the last kDrawsKept. From any thread, also while a step is queued in
  // another. Throws Error when the logits held NaN or +inf or nothing finite, InvalidArgument when
  // the banned ids left none.
  virtual std::int32_t wait_draw(DrawId) { return -1; }
  // Whether all that was queued is done. From any thread.
  virtual bool idle() noexcept { return true; }

  virtual BackendMemory memory() const = 0;
  virtual Trace& trace() = 0;
};

// `checkpoint` outlives the backend.
std::unique_ptr<Backend> make_cpu_backend(const ModelConfig& config,
                                          const MappedCheckpoint& checkpoint,
                                          const BackendOptions& options);
// Throws DeviceError when there is no usable device.
std::unique_ptr<Backend> make_cuda_backend(const ModelConfig& config,
                                           const MappedCheckpoint& checkpoint,
                                           const BackendOptions& options);
// Empty when a CUDA device can be used, otherwise why not.
std::string cuda_status();
// The first CUDA device, in words; empty where none can be used.
std::string cuda_device_text();

}  // namespace gptoss
