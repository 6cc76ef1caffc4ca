#include "engine/session_file.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "base/error.h"

namespace gptoss {

static_assert(std::endian::native == std::endian::little, "session files are little-endian");

namespace {

constexpr std::array<char, 8> kMagic = {'G', 'P', 'T', 'O', 'S', 'S', 'K', 'V'};
constexpr std::uint32_t kVersion = 1;

struct Header {
  std::array<char, 8> magic = kMagic;
  std::uint32_t version = kVersion;
  std::uint32_t page_tokens = kPageTokens;
  std::uint64_t fingerprint = 0;
  std::int64_t max_tokens = 0;
  std::int64_t num_tokens = 0;
  std::int64_t num_cached = 0;
  std::int64_t first_window_page = 0;
};
static_assert(sizeof(Header) == 56);

// 64 bits, eight bytes at a time: multiply and fold. Against damage, not against malice.
class Checksum {
 public:
  void add(std::span<const std::byte> bytes) {
    while (bytes.size() >= 8) {
      std::uint64_t word;
      std::memcpy(&word, bytes.data(), 8);
      mix(word);
      bytes = bytes.subspan(8);
    }
    if (bytes.empty()) return;
    std::uint64_t word = 0;
    std::memcpy(&word, bytes.data(), bytes.size());
    mix(word ^ (std::uint64_t{bytes.size()} << 56));
  }
  template <typename T>
  void add_value(const T& value) {
    add(std::as_bytes(std::span(&value, 1)));
  }
  std::uint64_t value() const { return state_; }

 private:
  void mix(std::uint64_t word) {
    state_ = std::rotl((state_ ^ word) * 0x9E3779B97F4A7C15u, 31) * 0xD6E8FEB86659FD93u;
  }
  std::uint64_t state_ = 0x243F6A8885A308D3u;
};

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

File open_file(const std::string& path, const char* mode) {
  return {std::fopen(path.c_str(), mode), &std::fclose};
}

class Writer {
 public:
  explicit Writer(std::FILE* out) : out_(out) {}
  void write(std::span<const std::byte> bytes) {
    GPTOSS_REQUIRE(CheckpointError,
                   std::fwrite(bytes.data(), 1, bytes.size(), out_) == bytes.size(),
                   "[save] expected to write ", bytes.size(), " bytes, the system refused (",
                   std::strerror(errno), "); is there space?");
    checksum_.add(bytes);
  }
  void finish() {
    const std::uint64_t value = checksum_.value();
    write(std::as_bytes(std::span(&value, 1)));
    GPTOSS_REQUIRE(CheckpointError, std::fflush(out_) == 0,
                   "[save] expected to finish writing, the system ", "refused (",
                   std::strerror(errno), "); is there space?");
  }

 private:
  std::FILE* out_;
  Checksum checksum_;
};

class Reader {
 public:
  explicit Reader(std::FILE* in) : in_(in) {}
  void read(std::span<std::byte> bytes, const char* what) {
    const std::size_t found = std::fread(bytes.data(), 1, bytes.size(), in_);
    GPTOSS_REQUIRE(CheckpointError, found == bytes.size(), "[restore] expected ", bytes.size(),
                   " bytes of ", what, ", found ", found,
                   "; the file is truncated, save the session again");
    checksum_.add(bytes);
  }
  void finish() {
    const std::uint64_t expected = checksum_.value();
    std::uint64_t found = 0;
    read(std::as_writable_bytes(std::span(&found, 1)), "checksum");
    GPTOSS_REQUIRE(CheckpointError, found == expected,
                   "[restore] expected the checksum of the contents, found another; the file is "
                   "damaged, save the session again");
    GPTOSS_REQUIRE(CheckpointError, std::fgetc(in_) == EOF,
                   "[restore] expected the end of the file, found more bytes; the file is damaged, "
                   "save the session again");
  }

 private:
  std::FILE* in_;
  Checksum checksum_;
};

// Clears positions [used, kPageTokens) of a page in KvPlan's layout, so that a file never holds
// what a page held before.
void clear_unused(std::span<std::byte> page, const KvPlan& plan, std::int64_t used) {
  const std::size_t element = plan.element_bytes();
  const std::size_t row = kPageTokens * element;
  const std::size_t unused = static_cast<std::size_t>(kPageTokens - used) * element;
  const std::size_t half = plan.layer_bytes() / 2;
  const std::size_t head = half / static_cast<std::size_t>(plan.num_kv_heads);
  for (std::size_t layer = 0; layer < page.size(); layer += plan.layer_bytes()) {
    for (std::size_t at = 0; at < half; at += row) {  // keys [heads][dims][tokens]
      std::memset(page.data() + layer + at + row - unused, 0, unused);
    }
    for (std::size_t at = half; at < 2 * half; at += head) {  // values [heads][tokens][dims]
      const std::size_t tail = unused * kHeadDim;
      std::memset(page.data() + layer + at + head - tail, 0, tail);
    }
  }
}

void add_small_weights(Checksum& sum, const ModelConfig& config, const Weights& weights) {
  const auto add = [&](const bf16* data, std::int64_t count) {
    if (data != nullptr)
      sum.add({reinterpret_cast<const std::byte*>(data),
               static_cast<std::size_t>(count) * sizeof(bf16)});
  };
  add(weights.final_norm, config.hidden_size);
  for (const LayerWeights& layer : weights.layers) {
    add(layer.attn_norm, config.hidden_size);
    add(layer.mlp_norm, config.hidden_size);
    add(layer.sinks, config.num_heads);
    add(layer.router_bias, config.num_experts);
  }
}

void check_header(const Header& header, const ModelCore& core) {
  GPTOSS_REQUIRE(CheckpointError, header.magic == kMagic,
                 "[restore] expected a saved session, found another kind of file; give what "
                 "Session.save wrote");
  GPTOSS_REQUIRE(CheckpointError, header.version == kVersion && header.page_tokens == kPageTokens,
                 "[restore] expected version ", kVersion, ", found ", header.version,
                 "; save the session again with this release");
  GPTOSS_REQUIRE(
      InvalidArgument, header.fingerprint == core.fingerprint,
      "[restore] expected a session of this model, found one of another model, precision "
      "or dense format; load the model as it was when the session was saved");
  const bool fits = header.max_tokens >= 1 && header.max_tokens <= core.config.max_context &&
                    header.num_tokens >= 0 && header.num_tokens <= header.max_tokens &&
                    header.num_cached >= 0 && header.num_cached <= header.num_tokens &&
                    header.first_window_page >= 0 &&
                    header.first_window_page <=
                        core.kv_plan.first_visible_page(KvGroup::kWindow, header.num_cached);
  GPTOSS_REQUIRE(CheckpointError, fits,
                 "[restore] expected consistent counts in the header, found ", header.num_tokens,
                 " tokens, ", header.num_cached, " cached, ", header.max_tokens,
                 " at most; the file is damaged, save the session again");
}

// Before memory is taken for what a short file only promises.
void check_size(const Header& header, const KvPlan& plan, std::FILE* in) {
  const long here = std::ftell(in);
  if (here < 0 || std::fseek(in, 0, SEEK_END) != 0) return;  // a pipe
  const std::uint64_t found = static_cast<std::uint64_t>(std::ftell(in) - here);
  std::fseek(in, here, SEEK_SET);
  const std::int64_t end = KvSequence::num_pages(header.num_cached);
  const std::uint64_t expected =
      static_cast<std::uint64_t>(header.num_tokens) * sizeof(std::int32_t) +
      static_cast<std::uint64_t>(end) * plan.page_bytes(KvGroup::kFull) +
      static_cast<std::uint64_t>(end - header.first_window_page) *
          plan.page_bytes(KvGroup::kWindow) +
      sizeof(std::uint64_t);
  GPTOSS_REQUIRE(CheckpointError, found == expected, "[restore] expected ", expected,
                 " bytes after the header, found ", found,
                 "; the file is truncated or damaged, save the session again");
}

}  // namespace

std::uint64_t model_fingerprint(const ModelConfig& config, const MappedCheckpoint& checkpoint,
                                const BackendOptions& options, const KvPlan& plan) {
  Checksum sum;
  for (const std::int64_t value :
       {config.num_layers, config.hidden_size, config.intermediate_size, config.num_experts,
        config.experts_per_token, config.num_heads, config.num_kv_heads, config.head_dim,
        config.vocab_size, config.sliding_window, config.max_context}) {
    sum.add_value(value);
  }
  for (const bool sliding : config.layer_is_sliding) sum.add_value(std::int64_t{sliding});
  for (const double value :
       {static_cast<double>(config.rms_norm_eps), static_cast<double>(config.swiglu_limit),
        static_cast<double>(config.swiglu_alpha), config.rope_theta, config.rope_factor,
        config.rope_original_context, config.rope_beta_fast, config.rope_beta_slow}) {
    sum.add_value(value);
  }
  sum.add_value(std::int64_t{config.rope_truncate});
  sum.add_value(static_cast<std::int64_t>(options.precision));
  sum.add_value(static_cast<std::int64_t>(options.dense));
  sum.add_value(static_cast<std::int64_t>(plan.dtype));
  add_small_weights(sum, config, checkpoint.weights);
  if (checkpoint.synthetic_seed) sum.add_value(*checkpoint.synthetic_seed);
  return sum.value();
}

// The one place outside session.cc that sees a session's parts.
struct SessionFile {
  static void save(Session& session, std::FILE* out) {
    const SessionUse use(session, "save");
    ModelCore& core = use.core();
    const KvSequence& sequence = use.sequence();
    Header header;
    header.fingerprint = core.fingerprint;
    header.max_tokens = session.max_tokens();
    header.num_tokens = use.position();
    header.num_cached = sequence.length();
    header.first_window_page = sequence.pages(KvGroup::kWindow).first_page();
    Writer writer(out);
    writer.write(std::as_bytes(std::span(&header, 1)));
    writer.write(std::as_bytes(std::span(use.tokens())));
    for (const KvGroup group : {KvGroup::kFull, KvGroup::kWindow}) {
      std::vector<std::byte> bytes(core.kv_plan.page_bytes(group));
      const PageList& list = sequence.pages(group);
      // A page that is only reserved is not saved.
      const std::int64_t end = std::min(list.end_page(), KvSequence::num_pages(sequence.length()));
      for (std::int64_t number = list.first_page(); number < end; ++number) {
        core.scheduler.with_backend(
            [&](Backend& backend) { backend.read_page(group, list.page(number), bytes); });
        const std::int64_t used = sequence.length() - number * kPageTokens;
        if (used < kPageTokens) clear_unused(bytes, core.kv_plan, used);
        writer.write(bytes);
      }
    }
    writer.finish();
  }

  static std::shared_ptr<Session> restore(std::shared_ptr<ModelCore> core, std::FILE* in) {
    Reader reader(in);
    Header header;
    reader.read(std::as_writable_bytes(std::span(&header, 1)), "header");
    check_header(header, *core);
    check_size(header, core->kv_plan, in);
    std::shared_ptr<Session> session = Session::create(core, header.max_tokens);
    std::vector<std::int32_t>& tokens = session->tokens_;
    tokens.resize(static_cast<std::size_t>(header.num_tokens));
    reader.read(std::as_writable_bytes(std::span(tokens)), "tokens");
    for (const std::int32_t token : tokens) {
      GPTOSS_REQUIRE(CheckpointError, token >= 0 && token < core->config.vocab_size,
                     "[restore] expected token ids in [0, ", core->config.vocab_size, "), found ",
                     token, "; the file is damaged, save the session again");
    }
    KvSequence& sequence = *session->sequence_;
    core->scheduler.with_backend([&](Backend&) {
      sequence.allocate_for_restore(header.num_cached, header.first_window_page);
    });
    for (const KvGroup group : {KvGroup::kFull, KvGroup::kWindow}) {
      std::vector<std::byte> bytes(core->kv_plan.page_bytes(group));
      const PageList& list = sequence.pages(group);
      for (std::int64_t number = list.first_page(); number < list.end_page(); ++number) {
        reader.read(bytes, "keys and values");
        core->scheduler.with_backend(
            [&](Backend& backend) { backend.write_page(group, list.page(number), bytes); });
      }
    }
    reader.finish();
    session->publish();
    return session;
  }
};

void save_session(Session& session, const std::string& path) {
  const std::string partial = path + ".partial-" + std::to_string(getpid());
  try {
    File out = open_file(partial, "wbe");
    GPTOSS_REQUIRE(CheckpointError, out != nullptr, "[save] expected to create ", partial, ", got ",
                   std::strerror(errno), "; choose a writable folder");
    SessionFile::save(session, out.get());
    GPTOSS_REQUIRE(
        CheckpointError,
        std::fclose(out.release()) == 0 && std::rename(partial.c_str(), path.c_str()) == 0,
        "[save] expected to finish ", path, ", got ", std::strerror(errno), "; is there space?");
  } catch (...) {
    std::remove(partial.c_str());
    throw;
  }
}

std::shared_ptr<Session> restore_session(std::shared_ptr<ModelCore> core, const std::string& path) {
  const File in = open_file(path, "rbe");
  GPTOSS_REQUIRE(CheckpointError, in != nullptr, "[restore] expected a saved session at ", path,
                 ", got ", std::strerror(errno), "; check the path");
  return SessionFile::restore(std::move(core), in.get());
}

}  // namespace gptoss
