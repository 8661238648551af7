#include "data/tokenizer.h"

#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <fstream>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <utility>
#include <xxhash.h>

#include "data/tokenizer_impl.h"
#include "data/utf8.h"

namespace chaski {
namespace {

// One field of a serialized protocol buffer.
struct ProtoField {
  std::uint64_t number;
  std::uint64_t value;     // of a varint
  std::string_view bytes;  // of a length-delimited field
};

// Takes the next field off `message`. SentencePiece's own message classes are not installed with
// it, and four of the model's settings are needed here.
std::optional<ProtoField> next_field(std::string_view& message) {
  const auto varint = [&]() -> std::optional<std::uint64_t> {
    std::uint64_t value = 0;
    for (int shift = 0; shift < 64 && !message.empty(); shift += 7) {
      const auto byte = static_cast<unsigned char>(message.front());
      message.remove_prefix(1);
      value |= static_cast<std::uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    return std::nullopt;
  };
  const auto tag = varint();
  if (!tag) return std::nullopt;
  ProtoField field{*tag >> 3, 0, {}};
  std::uint64_t length = 0;
  switch (*tag & 7) {
    case 0: {
      const auto value = varint();
      if (!value) return std::nullopt;
      field.value = *value;
      return field;
    }
    case 1:
      length = 8;
      break;
    case 2: {
      const auto value = varint();
      if (!value) return std::nullopt;
      length = *value;
      break;
    }
    case 5:
      length = 4;
      break;
    default:
      return std::nullopt;
  }
  if (length > message.size()) return std::nullopt;
  field.bytes = message.substr(0, length);
  message.remove_prefix(length);
  return field;
}

// The settings of a model that decide what text can be got back. Defaults as in
// sentencepiece_model.proto.
struct ModelSettings {
  bool normalizes = false;
  bool adds_dummy_prefix = true;
  bool removes_spaces = true;
  bool escapes_spaces = true;
  bool byte_fallback = false;
};

ModelSettings settings_of(std::string_view model) {
  constexpr std::uint64_t kTrainerSpec = 2, kNormalizerSpec = 3;
  ModelSettings settings;
  while (auto field = next_field(model)) {
    std::string_view spec = field->bytes;
    if (field->number == kTrainerSpec) {
      while (auto setting = next_field(spec)) {
        if (setting->number == 35) settings.byte_fallback = setting->value != 0;
      }
    } else if (field->number == kNormalizerSpec) {
      while (auto setting = next_field(spec)) {
        if (setting->number == 2) settings.normalizes = !setting->bytes.empty();
        if (setting->number == 3) settings.adds_dummy_prefix = setting->value != 0;
        if (setting->number == 4) settings.removes_spaces = setting->value != 0;
        if (setting->number == 5) settings.escapes_spaces = setting->value != 0;
      }
    }
  }
  return settings;
}

std::string with_spaces(std::string_view piece) {
  std::string text;
  for (std::size_t at; (at = piece.find(kSpaceMark)) != std::string_view::npos;) {
    text.append(piece.substr(0, at)).push_back(' ');
    piece.remove_prefix(at + kSpaceMark.size());
  }
  return text.append(piece);
}

}  // namespace

Tokenizer::Impl::Impl(std::string model, const std::string& origin) : serialized(std::move(model)) {
  const auto status = processor.LoadFromSerializedProto(serialized);
  if (!status.ok() || processor.GetPieceSize() <= 0) {
    throw std::invalid_argument(fmt::format(
        "{}: is not a SentencePiece model\nhint: make one with `chaski tokenizer`", origin));
  }
  const XXH128_hash_t hash = XXH3_128bits(serialized.data(), serialized.size());
  fingerprint = fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
  const ModelSettings settings = settings_of(serialized);
  strips_space = settings.adds_dummy_prefix || settings.removes_spaces;
  cuttable = !settings.normalizes && !strips_space && settings.escapes_spaces;
  lossless = cuttable && settings.byte_fallback;
  read_pieces();
}

void Tokenizer::Impl::read_pieces() {
  const int size = processor.GetPieceSize();
  bytes.resize(size);
  std::size_t byte_pieces = 0;
  for (int id = 0; id < size; ++id) {
    if (processor.IsControl(id)) continue;
    if (processor.IsUnknown(id)) {
      bytes[id] = " \xE2\x81\x87 ";  // as SentencePiece decodes it
      continue;
    }
    const std::string& piece = processor.IdToPiece(id);
    unsigned value = 0;
    if (processor.IsByte(id) && std::sscanf(piece.c_str(), "<0x%02X>", &value) == 1) {
      ++byte_pieces;
      bytes[id] = std::string(1, static_cast<char>(value));
      for (std::size_t i = 0; i < kSpaceMark.size(); ++i) {
        if (static_cast<unsigned char>(kSpaceMark[i]) == value) space_mark[i] = id;
      }
      continue;
    }
    bytes[id] = with_spaces(piece);
    for (std::size_t i = 1; i < bytes[id].size(); ++i) {
      joined_.set(static_cast<unsigned char>(bytes[id][i - 1]) * 256 +
                  static_cast<unsigned char>(bytes[id][i]));
    }
  }
  lossless = lossless && byte_pieces == 256;
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::~Tokenizer() = default;

std::shared_ptr<const Tokenizer> Tokenizer::load(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    throw std::runtime_error(
        fmt::format("{}: the tokenizer cannot be opened: {}\nhint: `chaski tokenizer` makes one",
                    path, std::strerror(errno)));
  }
  std::string bytes((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (file.bad()) throw std::runtime_error(fmt::format("{}: the tokenizer cannot be read", path));
  return from_bytes(std::move(bytes), path);
}

std::shared_ptr<const Tokenizer> Tokenizer::from_bytes(std::string serialized,
                                                       const std::string& origin) {
  return std::shared_ptr<const Tokenizer>(
      new Tokenizer(std::make_unique<Impl>(std::move(serialized), origin)));
}

std::vector<std::int32_t> Tokenizer::encode(std::string_view text) const {
  // Only borrowed: the encoder does not outlive this call.
  Encoder encoder(std::shared_ptr<const Tokenizer>(std::shared_ptr<void>(), this));
  std::vector<std::int32_t> ids;
  encoder.encode(text, ids);
  return ids;
}

std::string Tokenizer::decode(std::span<const std::int32_t> ids) const {
  StreamDecoder decoder(std::shared_ptr<const Tokenizer>(std::shared_ptr<void>(), this));
  std::string text;
  for (const std::int32_t id : ids) text += decoder.push(id);
  return text + decoder.finish();
}

std::int32_t Tokenizer::vocab_size() const {
  return static_cast<std::int32_t>(impl_->bytes.size());
}
std::int32_t Tokenizer::unk_id() const {
  return impl_->processor.unk_id();
}
std::int32_t Tokenizer::bos_id() const {
  return impl_->processor.bos_id();
}
std::int32_t Tokenizer::eos_id() const {
  return impl_->processor.eos_id();
}
const std::string& Tokenizer::serialized() const {
  return impl_->serialized;
}
const std::string& Tokenizer::fingerprint() const {
  return impl_->fingerprint;
}
bool Tokenizer::lossless() const {
  return impl_->lossless;
}

std::string_view Tokenizer::bytes_of(std::int32_t id) const {
  if (id < 0 || id >= vocab_size()) {
    throw std::out_of_range(
        fmt::format("token {} is outside the vocabulary of {}", id, vocab_size()));
  }
  return impl_->bytes[id];
}

StreamDecoder::StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer)
    : tokenizer_(std::move(tokenizer)) {}

std::string StreamDecoder::push(std::int32_t id) {
  std::string_view bytes = tokenizer_->bytes_of(id);
  if (at_start_ && !bytes.empty()) {
    at_start_ = false;
    if (tokenizer_->impl_->strips_space && bytes.front() == ' ') bytes.remove_prefix(1);
  }
  pending_.append(bytes);
  std::string_view rest = pending_;
  std::string text = take_text(rest);
  pending_.erase(0, pending_.size() - rest.size());
  return text;
}

std::string StreamDecoder::finish() {
  at_start_ = true;
  return replace_ill_formed(std::exchange(pending_, {}));
}

}  // namespace chaski
