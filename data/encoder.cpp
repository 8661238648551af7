#include <cstring>
#include <fmt/format.h>
#include <stdexcept>
#include <xxhash.h>

#include "data/tokenizer.h"
#include "data/tokenizer_impl.h"
#include "data/utf8.h"

namespace chaski {
namespace {

constexpr std::size_t kLongestCachedWord = 48;  // bytes, and so the most ids of such a word
constexpr std::size_t kSlots = 1 << 17;         // a power of two
constexpr std::size_t kMostWords = kSlots / 2;
constexpr std::size_t kMostArenaBytes = 8 << 20;
// A run of text without a place to cut is encoded at most this long at once.
constexpr std::size_t kLongestWord = 1 << 20;

}  // namespace

// An open-addressing table from words to ids. Emptied when full: frequent words return at once.
class Encoder::WordCache {
 public:
  WordCache() : slots_(kSlots) {}

  // Appends the ids of `word` and returns true where it is known.
  bool find(std::string_view word, std::uint64_t hash, std::vector<std::int32_t>& ids) const {
    for (std::size_t at = hash & (kSlots - 1);; at = (at + 1) & (kSlots - 1)) {
      const Slot& slot = slots_[at];
      if (slot.word_bytes == 0) return false;
      if (slot.hash != hash || slot.word_bytes != word.size()) continue;
      if (std::memcmp(words_.data() + slot.word, word.data(), word.size()) != 0) continue;
      ids.insert(ids.end(), ids_.begin() + slot.ids, ids_.begin() + slot.ids + slot.num_ids);
      return true;
    }
  }

  void insert(std::string_view word, std::uint64_t hash, const std::int32_t* ids,
              std::size_t num_ids) {
    if (size_ >= kMostWords || words_.size() >= kMostArenaBytes) clear();
    std::size_t at = hash & (kSlots - 1);
    while (slots_[at].word_bytes != 0) at = (at + 1) & (kSlots - 1);
    slots_[at] = {hash, static_cast<std::uint32_t>(words_.size()),
                  static_cast<std::uint32_t>(ids_.size()), static_cast<std::uint8_t>(word.size()),
                  static_cast<std::uint8_t>(num_ids)};
    words_.append(word);
    ids_.insert(ids_.end(), ids, ids + num_ids);
    ++size_;
  }

 private:
  struct Slot {
    std::uint64_t hash = 0;
    std::uint32_t word = 0;  // where its bytes begin in words_
    std::uint32_t ids = 0;
    std::uint8_t word_bytes = 0;  // 0: free
    std::uint8_t num_ids = 0;
  };

  void clear() {
    slots_.assign(kSlots, Slot{});
    words_.clear();
    ids_.clear();
    size_ = 0;
  }

  std::vector<Slot> slots_;
  std::string words_;
  std::vector<std::int32_t> ids_;
  std::size_t size_ = 0;
};

Encoder::Encoder(std::shared_ptr<const Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {}
Encoder::~Encoder() = default;

void Encoder::encode(std::string_view text, std::vector<std::int32_t>& ids) {
  const Tokenizer::Impl& model = *tokenizer_->impl_;
  if (!model.cuttable) return encode_uncached(text, ids);
  std::string repaired;
  if (valid_utf8_prefix(text) != text.size()) {
    repaired = replace_ill_formed(text);
    text = repaired;
  }
  if (!model.lossless) return encode_words(text, ids);
  for (std::size_t at; (at = text.find(kSpaceMark)) != std::string_view::npos;) {
    encode_words(text.substr(0, at), ids);
    ids.insert(ids.end(), model.space_mark.begin(), model.space_mark.end());
    text.remove_prefix(at + kSpaceMark.size());
  }
  encode_words(text, ids);
}

void Encoder::encode_words(std::string_view text, std::vector<std::int32_t>& ids) {
  const Tokenizer::Impl& model = *tokenizer_->impl_;
  // A little text, such as a prompt, is not worth a table.
  encoded_bytes_ += text.size();
  if (!cache_ && encoded_bytes_ > 4096) cache_ = std::make_unique<WordCache>();
  std::size_t begin = 0;
  while (begin < text.size()) {
    std::size_t end = begin + 1;
    while (end < text.size() &&
           (!model.cuts_between(text[end - 1], text[end]) || is_continuation(text[end]))) {
      ++end;
    }
    if (end - begin > kLongestWord) end = character_border(text, begin + kLongestWord);
    const std::string_view word = text.substr(begin, end - begin);
    begin = end;
    if (!cache_ || word.size() > kLongestCachedWord) {
      encode_uncached(word, ids);
      continue;
    }
    const std::uint64_t hash = XXH3_64bits(word.data(), word.size());
    if (cache_->find(word, hash, ids)) continue;
    const std::size_t first = ids.size();
    encode_uncached(word, ids);
    cache_->insert(word, hash, ids.data() + first, ids.size() - first);
  }
}

void Encoder::encode_uncached(std::string_view word, std::vector<std::int32_t>& ids) {
  const auto status = tokenizer_->impl_->processor.Encode(word, &scratch_);
  if (!status.ok()) {
    throw std::runtime_error(fmt::format("the tokenizer failed on a text: {}", status.ToString()));
  }
  ids.insert(ids.end(), scratch_.begin(), scratch_.end());
}

}  // namespace chaski
