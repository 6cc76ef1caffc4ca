#include "model/kv_plan.h"

namespace gptoss {

KvPlan::KvPlan(const ModelConfig& config, KvDtype dtype)
    : dtype(dtype),
      num_kv_heads(config.num_kv_heads),
      window(0),
      num_group_layers{0, 0},
      num_layers(config.num_layers) {
  for (const bool sliding : config.layer_is_sliding) {
    const KvGroup group = sliding ? KvGroup::kWindow : KvGroup::kFull;
    layer_group.push_back(group);
    layer_in_group.push_back(num_group_layers[static_cast<int>(group)]++);
    if (sliding) window = config.sliding_window;
  }
}

}  // namespace gptoss
