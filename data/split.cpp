#include "data/split.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fmt/format.h>
#include <stdexcept>
#include <vector>
#include <xxhash.h>

namespace chaski {
namespace {

constexpr std::uint64_t kRunTokens = 1 << 18;
// How far from the wanted place a block may be cut: of the tokens wanted in it, and in tokens.
constexpr double kCutSlack = 0.25;
constexpr std::uint64_t kMostCutSlack = 1 << 16;

using PartSize = TokenFileWriter::PartSize;
using Document = TokenSpool::Document;

void count_document(PartSize& size, std::uint64_t begin, const Document& document) {
  size.num_tokens += document.end - begin;
  size.num_documents += 1;
  size.num_bytes += document.bytes;
}

// The best place to cut within `slack` of `target`: the nearest end of a document, else of a line,
// else the nearest beginning of a word.
std::uint64_t cut_near(TokenSpool& spool, const Tokenizer& tokenizer, std::uint64_t target,
                       std::uint64_t slack) {
  const std::uint64_t begin = target > slack ? target - slack : 1;
  const std::uint64_t end = std::min(target + slack, spool.num_tokens() - 1);
  std::uint64_t best[3] = {0, 0, 0};  // document, line, word; 0: none
  const auto consider = [&](int kind, std::uint64_t place) {
    const auto distance = [&](std::uint64_t p) { return p > target ? p - target : target - p; };
    if (place < begin || place > end) return;
    if (best[kind] == 0 || distance(place) < distance(best[kind])) best[kind] = place;
  };
  spool.for_each_document(
      [&](std::uint64_t, std::uint64_t, const Document& document) { consider(0, document.end); });
  std::uint64_t position = begin;
  spool.for_each_run(begin, end, [&](const std::byte* ids, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i, ++position) {
      const std::string_view bytes = tokenizer.bytes_of(spool.token(ids, i));
      if (bytes.ends_with('\n')) consider(1, position + 1);
      if (bytes.starts_with(' ')) consider(2, position);
    }
  });
  for (const std::uint64_t place : best) {
    if (place != 0) return place;
  }
  return target;
}

// Bytes of text that the tokens [begin, end) stand for.
std::uint64_t text_bytes(TokenSpool& spool, const Tokenizer& tokenizer, std::uint64_t begin,
                         std::uint64_t end) {
  std::uint64_t bytes = 0;
  spool.for_each_run(begin, end, [&](const std::byte* ids, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      bytes += tokenizer.bytes_of(spool.token(ids, i)).size();
    }
  });
  return bytes;
}

void measure_block(TokenSpool& spool, const Tokenizer& tokenizer, Split& split) {
  split.train = split.validation = {};
  spool.for_each_document([&](std::uint64_t, std::uint64_t begin, const Document& document) {
    if (document.end <= split.cut) {
      count_document(split.train, begin, document);
    } else if (begin >= split.cut) {
      count_document(split.validation, begin, document);
    } else {
      // Of a tokenizer that loses text the bytes are an estimate, but they add up.
      const std::uint64_t bytes =
          std::min(text_bytes(spool, tokenizer, begin, split.cut), document.bytes);
      count_document(split.train, begin, {split.cut, bytes});
      count_document(split.validation, split.cut, {document.end, document.bytes - bytes});
    }
  });
}

void write_part(TokenSpool& spool, const Split& split, Part part, TokenFileWriter& writer) {
  const bool validation = part == Part::validation;
  writer.begin_part(part, validation ? split.validation : split.train);
  std::uint64_t written = 0, run_begin = 0, run_end = 0;
  const auto write_run = [&] {
    spool.for_each_run(run_begin, run_end, [&](const std::byte* ids, std::size_t count) {
      writer.add_tokens({ids, count * spool.bytes_per_token()});
    });
  };
  spool.for_each_document([&](std::uint64_t index, std::uint64_t begin, const Document& document) {
    std::uint64_t end = document.end;
    if (split.kind == Split::Kind::by_document) {
      if (in_validation(index, split.fraction, split.seed) != validation) return;
    } else if (split.kind == Split::Kind::block) {
      if (validation) {
        begin = std::max(begin, split.cut);
      } else {
        end = std::min(end, split.cut);
      }
      if (begin >= end) return;
    }
    if (begin != run_end) {
      write_run();
      run_begin = begin;
    }
    run_end = end;
    written += end - begin;
    writer.add_document_end(written);
  });
  write_run();
  writer.end_part();
}

}  // namespace

TokenSpool::TokenSpool(const std::string& beside, std::uint64_t bytes_per_token)
    : tokens_(beside), documents_(beside), bytes_per_token_(bytes_per_token) {}

void TokenSpool::add_tokens(const void* ids, std::uint64_t count) {
  tokens_.append(ids, count * bytes_per_token_);
}

void TokenSpool::end_document(std::uint64_t bytes) {
  const Document document{num_tokens(), bytes};
  documents_.append(&document, sizeof document);
  num_bytes_ += bytes;
}

void TokenSpool::for_each_document(
    const std::function<void(std::uint64_t, std::uint64_t, const Document&)>& visit) {
  std::vector<Document> documents;
  std::uint64_t begin = 0;
  for (std::uint64_t index = 0; index < num_documents();) {
    documents.resize(std::min<std::uint64_t>(num_documents() - index, 1 << 15));
    documents_.read(index * sizeof(Document), documents.data(),
                    documents.size() * sizeof(Document));
    for (const Document& document : documents) {
      visit(index++, begin, document);
      begin = document.end;
    }
  }
}

void TokenSpool::for_each_run(std::uint64_t begin, std::uint64_t end,
                              const std::function<void(const std::byte*, std::size_t)>& visit) {
  std::vector<std::byte> ids;
  while (begin < end) {
    const std::uint64_t count = std::min(end - begin, kRunTokens);
    ids.resize(count * bytes_per_token_);
    tokens_.read(begin * bytes_per_token_, ids.data(), ids.size());
    visit(ids.data(), count);
    begin += count;
  }
}

std::int32_t TokenSpool::token(const std::byte* ids, std::uint64_t index) const {
  std::uint32_t id = 0;
  std::memcpy(&id, ids + index * bytes_per_token_, bytes_per_token_);
  return static_cast<std::int32_t>(id);
}

std::string Split::in_words() const {
  switch (kind) {
    case Kind::by_document:
      return fmt::format("by document, validation {}, seed {}", fraction, seed);
    case Kind::block:
      return fmt::format("block, validation {} from token {} of the corpus on", fraction, cut);
    case Kind::none:
      break;
  }
  return "none";
}

bool in_validation(std::uint64_t document, double fraction, std::uint64_t seed) {
  const std::uint64_t hash = XXH3_64bits_withSeed(&document, sizeof document, seed);
  return std::ldexp(static_cast<double>(hash >> 11), -53) < fraction;
}

Split plan_split(TokenSpool& spool, const Tokenizer& tokenizer, double fraction,
                 std::uint64_t seed) {
  Split split;
  split.fraction = fraction;
  split.seed = seed;
  if (fraction <= 0.0) {
    split.train = {spool.num_tokens(), spool.num_documents(), spool.num_bytes()};
    return split;
  }
  const std::uint64_t total = spool.num_tokens();
  if (total < 2) throw std::invalid_argument("--split: the corpus is a single token");
  split.kind = Split::Kind::by_document;
  spool.for_each_document([&](std::uint64_t index, std::uint64_t begin, const Document& document) {
    count_document(in_validation(index, fraction, seed) ? split.validation : split.train, begin,
                   document);
  });
  const double share =
      static_cast<double>(split.validation.num_tokens) / static_cast<double>(total);
  const double odds = share * (1.0 - fraction), wanted_odds = fraction * (1.0 - share);
  if (odds >= wanted_odds / 2 && odds <= wanted_odds * 2) return split;

  split.kind = Split::Kind::block;
  const auto wanted =
      static_cast<std::uint64_t>(std::llround(fraction * static_cast<double>(total)));
  const std::uint64_t validation = std::clamp<std::uint64_t>(wanted, 1, total - 1);
  const double smaller = static_cast<double>(std::min(validation, total - validation));
  const auto slack = std::min(static_cast<std::uint64_t>(kCutSlack * smaller), kMostCutSlack);
  split.cut = cut_near(spool, tokenizer, total - validation, slack);
  measure_block(spool, tokenizer, split);
  return split;
}

void write_parts(TokenSpool& spool, const Split& split, TokenFileWriter& writer) {
  write_part(spool, split, Part::train, writer);
  if (split.kind != Split::Kind::none) write_part(spool, split, Part::validation, writer);
}

}  // namespace chaski
