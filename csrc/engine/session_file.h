// A session's state as a file: its tokens and the pages that hold their keys and values.
//
// Little-endian. Header: magic "GPTOSSKV", version, fingerprint of the model, max_tokens, number of
// tokens, number of cached tokens, first window page. Then the tokens (int32), the pages of both
// groups in order of position, and a checksum of everything before it. Positions of the last page
// that hold nothing are zero. Marks are not saved.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "backend/backend.h"
#include "engine/session.h"

namespace gptoss {

// Of the configuration, the numerics, and weights that are small and differ between trainings.
std::uint64_t model_fingerprint(const ModelConfig& config, const MappedCheckpoint& checkpoint,
                                const BackendOptions& options, const KvPlan& plan);

// The file appears whole or not at all. Throws CheckpointError when it cannot be written.
void save_session(Session& session, const std::string& path);

// Throws CheckpointError for a damaged or truncated state, InvalidArgument for one of another
// model.
std::shared_ptr<Session> restore_session(std::shared_ptr<ModelCore> core, const std::string& path);

}  // namespace gptoss
