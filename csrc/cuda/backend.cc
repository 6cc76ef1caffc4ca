#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "cuda/cuda_backend.h"
#include "cuda/status.h"

namespace gptoss::cuda {
namespace {

// Logits of so many rows stay allocated; what one large call needed is not kept.
constexpr std::int64_t kLogitRowsKept = 256;
// Of one piece of logits on its way to the host.
constexpr std::size_t kBounceBytes = std::size_t{8} << 20;

}  // namespace

DeviceInfo open_device(int index) {
  const std::string status = device_status(index);
  GPTOSS_REQUIRE(DeviceError, status.empty(),
                 "[load_model] expected a CUDA device that can be used: ", status,
                 "; use device='cpu'");
  check(cudaSetDevice(index), "load_model");
  return device_info(index);
}

namespace {

// All that a backend holds besides weights and pages, before anything is allocated.
std::size_t planned_workspace(const ModelConfig& config) {
  return SmallStep::workspace_bytes(config) + LargeStep::workspace_bytes(config, kMaxBatchTokens) +
         StepUpload::planned_bytes(kMaxBatchTokens) + Draws::planned_bytes(config.vocab_size) +
         static_cast<std::size_t>(kSmallRows * config.vocab_size) * sizeof(float);
}

}  // namespace

CudaBackend::CudaBackend(const ModelConfig& config, const TensorSource& source, int device_index)
    : config_(config),
      device_(open_device(device_index)),
      process_(getpid()),
      weights_(config, source, planned_workspace(config)),
      plan_(config, KvDtype::kBf16),
      storage_(plan_),
      upload_(kMaxBatchTokens, config.num_layers, config.experts_per_token),
      large_(weights_.model(), device_, plan_, kMaxBatchTokens),
      draws_(config.vocab_size) {
  if (SmallStep::fits(config, device_)) small_.emplace(weights_.model(), device_, plan_);
  const auto row_bytes = static_cast<std::size_t>(config.vocab_size) * sizeof(float);
  for (PinnedBuffer& bounce : bounce_) {
    bounce = PinnedBuffer(std::max(kBounceBytes / row_bytes, std::size_t{1}) * row_bytes,
                          "logits of a step");
  }
  logits_for(kSmallRows);
  warm_up();
  check(cudaDeviceSynchronize(), "load_model");
}

CudaBackend::~CudaBackend() {
  if (getpid() != process_) return;  // a child of os.fork has no device to wait for
  cudaSetDevice(device_.index);
  cudaStreamSynchronize(stream_.get());
}

void CudaBackend::warm_up() {
  struct Pages {
    KvStorage& storage;
    std::vector<PageId> ids[kNumKvGroups];
    ~Pages() {
      for (int g = 0; g < kNumKvGroups; ++g) {
        for (const PageId page : ids[g]) storage.free(static_cast<KvGroup>(g), page);
      }
    }
  };
  // Numbers of tokens and ways to draw that take kernels of their own; one token so often that it
  // is a graph then.
  struct Kind {
    std::int64_t rows;
    double temperature = 0;
    double top_p = 1;
    std::int64_t top_k = 0;
  };
  constexpr Kind kKinds[] = {
      {1}, {1}, {4, 1}, {kSmallRows / 2, 1, 0.9}, {kSmallRows + 1, 1, 1, 50}, {64}, {512}};
  const std::int64_t most =
      std::min(std::ranges::max(kKinds, {}, &Kind::rows).rows, config_.max_context);
  const std::vector<std::int32_t> tokens(static_cast<std::size_t>(most));
  Pages pages{storage_, {}};
  try {
    for (int g = 0; g < kNumKvGroups; ++g) {
      if (plan_.num_group_layers[g] == 0) continue;
      for (std::int64_t page = 0; page < tiles_along(most, kPageTokens); ++page) {
        pages.ids[g].push_back(storage_.allocate(static_cast<KvGroup>(g)));
      }
    }
  } catch (const OutOfMemory&) {
    return;  // the caller who needs pages reports it
  }
  for (const Kind& kind : kKinds) {
    DrawOptions options;
    options.temperature = kind.temperature;
    options.top_p = kind.top_p;
    options.top_k = kind.top_k;
    Segment segment;
    const auto count = static_cast<std::size_t>(std::min(kind.rows, most));
    segment.tokens = std::span(tokens).first(count);
    for (int g = 0; g < kNumKvGroups; ++g) segment.pages[g] = pages.ids[g];
    segment.logits = LogitsWanted::kDraw;
    segment.draw = &options;
    DrawId draw = 0;
    Batch batch;
    batch.segments = {&segment, 1};
    batch.draws = &draw;
    forward(batch);
  }
}

std::string CudaBackend::describe() const {
  const std::int32_t rows = small_ ? small_->group_rows() : 0;
  return cat("cuda ", static_cast<const char*>(device_.name), ", compute capability ",
             device_.compute_capability / 10, '.', device_.compute_capability % 10,
             rows == kSmallRows ? "" : cat(", few rows ", rows, " at a time"));
}

void CudaBackend::enter(const char* op) const {
  GPTOSS_REQUIRE(DeviceError, getpid() == process_, "[", op,
                 "] expected the process that loaded the model, this is a fork of it, and CUDA "
                 "does not survive a fork; load the model after forking, or spawn");
  check(cudaSetDevice(device_.index), op);
}

PageId CudaBackend::allocate_page(KvGroup group) {
  enter("allocate_page");
  return storage_.allocate(group);
}

void CudaBackend::free_page(KvGroup group, PageId page) noexcept {
  if (getpid() == process_) storage_.free(group, page);
}

void CudaBackend::copy_page(KvGroup group, PageId from, PageId to) {
  enter("copy_page");
  check(cudaMemcpyAsync(storage_.page(group, to), storage_.page(group, from),
                        plan_.page_bytes(group), cudaMemcpyDeviceToDevice, stream_.get()),
        "copy_page");
}

void CudaBackend::read_page(KvGroup group, PageId page, std::span<std::byte> out) {
  enter("read_page");
  std::vector<std::byte> held(plan_.page_bytes(group));
  check(cudaMemcpyAsync(held.data(), storage_.page(group, page), held.size(),
                        cudaMemcpyDeviceToHost, stream_.get()),
        "read_page");
  stream_.synchronize("read_page");
  page_to_plan(plan_, group, held, out);
}

void CudaBackend::write_page(KvGroup group, PageId page, std::span<const std::byte> in) {
  enter("write_page");
  std::vector<std::byte> held(plan_.page_bytes(group));
  page_from_plan(plan_, group, in, held);
  check(cudaMemcpyAsync(storage_.page(group, page), held.data(), held.size(),
                        cudaMemcpyHostToDevice, stream_.get()),
        "write_page");
  stream_.synchronize("write_page");
}

float* CudaBackend::logits_for(std::int64_t rows) {
  const auto row_bytes = static_cast<std::size_t>(config_.vocab_size) * sizeof(float);
  const std::size_t num_bytes = static_cast<std::size_t>(rows) * row_bytes;
  const std::size_t kept = static_cast<std::size_t>(kLogitRowsKept) * row_bytes;
  if (num_bytes > logits_.num_bytes() || (logits_.num_bytes() > kept && num_bytes <= kept)) {
    stream_.synchronize("forward");  // earlier steps may still write there
    logits_ = DeviceBuffer();
    logits_ = DeviceBuffer(rows <= kSmallRows ? kSmallRows * row_bytes : std::max(num_bytes, kept),
                           "logits of a step");
  }
  return logits_.as<float>();
}

// Zones are the host's time; only where a profile is wanted does it wait for the device.
void CudaBackend::next_zone(Zone& zone, const char* name) {
  if (trace_.enabled()) stream_.synchronize("forward");
  zone.next(name);
}

void CudaBackend::forward(const Batch& batch) {
  enter("forward");
  Zone zone(&trace_, "upload");
  float* const logits = logits_for(batch.num_scored_rows());
  const std::span<const DrawRow> draws = draws_.prepare(batch, stream_.get());
  const StepView step = upload_.upload(batch, {storage_, draws_.tokens(), draws}, stream_.get());
  if (small_ && step.num_rows <= kSmallRows) {
    next_zone(zone, "small_step");
    small_->run(step, logits, stream_.get());
  } else {
    next_zone(zone, "large_step");
    large_.run(step, logits, stream_.get(), &trace_);
  }
  next_zone(zone, "draw");
  draws_.queue(logits, upload_.draws(), stream_.get());
  next_zone(zone, "logits_to_host");
  if (batch.num_logit_rows() > 0) hand_out(batch, logits);
  if (trace_.enabled()) stream_.synchronize("forward");
}

void CudaBackend::hand_out(const Batch& batch, const float* logits) {
  // Rows of draws lie between those of logits.
  float* out = batch.logits;
  std::int64_t begin = 0;
  std::int64_t row = 0;
  const auto flush = [&] {
    copy_rows(logits + begin * config_.vocab_size, row - begin, out);
    out += (row - begin) * config_.vocab_size;
  };
  for (const Segment& segment : batch.segments) {
    if (segment.logits == LogitsWanted::kDraw) {
      flush();
      begin = row + 1;
    }
    row += segment.num_scored_rows();
  }
  flush();
}

void CudaBackend::copy_rows(const float* from, std::int64_t rows, float* to) {
  const std::int64_t vocab = config_.vocab_size;
  const auto row_bytes = static_cast<std::size_t>(vocab) * sizeof(float);
  const auto piece = static_cast<std::int64_t>(bounce_[0].num_bytes() / row_bytes);
  const auto size = [&](std::int64_t first) {
    return static_cast<std::size_t>(std::min(piece, rows - first)) * row_bytes;
  };
  const auto fetch = [&](std::int64_t first, int slot) {
    check(cudaMemcpyAsync(bounce_[slot].as<std::byte>(), from + first * vocab, size(first),
                          cudaMemcpyDeviceToHost, stream_.get()),
          "forward");
    check(cudaEventRecord(bounced_[slot].get(), stream_.get()), "forward");
  };
  int slot = 0;
  if (rows > 0) fetch(0, slot);
  for (std::int64_t first = 0; first < rows; first += piece, slot = 1 - slot) {
    if (first + piece < rows) fetch(first + piece, 1 - slot);
    check(cudaEventSynchronize(bounced_[slot].get()), "forward");
    std::memcpy(to + first * vocab, bounce_[slot].as<std::byte>(), size(first));
  }
}

std::int32_t CudaBackend::wait_draw(DrawId draw) {
  enter("generate");
  return draws_.wait(draw);
}

bool CudaBackend::idle() noexcept {
  return getpid() != process_ || draws_.idle();
}

BackendMemory CudaBackend::memory() const {
  return {weights_.num_bytes(), storage_.num_bytes(),
          (small_ ? small_->workspace_bytes() : 0) + large_.workspace_bytes() +
              upload_.num_bytes() + draws_.num_bytes() + logits_.num_bytes()};
}

}  // namespace gptoss::cuda

namespace gptoss {

std::unique_ptr<Backend> make_cuda_backend(const ModelConfig& config,
                                           const MappedCheckpoint& checkpoint,
                                           const BackendOptions& options) {
  GPTOSS_REQUIRE(InvalidArgument, options.precision == Precision::kDefault,
                 "[load_model] expected precision='default' on a CUDA device, got 'float32'; use "
                 "device='cpu' for it");
  GPTOSS_REQUIRE(InvalidArgument, options.dense == DenseFormat::kBf16,
                 "[load_model] expected dense='bf16' on a CUDA device, got 'int8'; use "
                 "device='cpu' for it");
  if (checkpoint.synthetic_seed) {
    const cuda::SyntheticSource source(config, *checkpoint.synthetic_seed);
    return std::make_unique<cuda::CudaBackend>(config, source, options.device_index);
  }
  const cuda::MappedSource source(checkpoint.weights);
  return std::make_unique<cuda::CudaBackend>(config, source, options.device_index);
}

}  // namespace gptoss
