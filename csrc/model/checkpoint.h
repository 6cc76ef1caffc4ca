// From tensor records (parsed by checkpoint/ in Python) to typed views over mapped files. Every
// bound, dtype and shape is checked again here: Python's records are input like any other.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "model/model_config.h"
#include "model/weights.h"

namespace gptoss {

enum class CheckpointLayout { kHuggingFace, kOriginal };

struct TensorRecord {
  std::string name;
  std::int64_t file = 0;  // index into the files
  std::string dtype;      // safetensors' spelling: "BF16", "U8"
  std::vector<std::int64_t> shape;
  std::int64_t begin = 0;  // absolute byte offsets in the file
  std::int64_t end = 0;
};

struct CheckpointFile {
  std::string path;
  std::int64_t num_bytes = 0;
};

struct CheckpointOptions {
  CheckpointLayout layout = CheckpointLayout::kHuggingFace;
  MapMode map_mode = MapMode::kShared;
  bool lock = false;         // pin the pages in memory
  bool check_scales = true;  // read every MXFP4 scale once and refuse NaN (byte 255)
};

// The mapped files and the views into them.
struct MappedCheckpoint {
  std::vector<MappedFile> files;
  Weights weights;
  // Set where there are no files: random weights, which a backend makes for itself if it can.
  std::optional<std::uint64_t> synthetic_seed;

  // Throws CheckpointError when a file has shrunk since it was opened.
  void check_files() const;
};

MappedCheckpoint map_checkpoint(const ModelConfig& config, const std::vector<CheckpointFile>& files,
                                const std::vector<TensorRecord>& records,
                                const CheckpointOptions& options);

}  // namespace gptoss
