#include <algorithm>
#include <atomic>
#include <fmt/core.h>
#include <fstream>
#include <memory>
#include <sentencepiece_processor.h>
#include <thread>

#include "app/bench/directory.h"
#include "app/bench/report.h"
#include "app/bench/text.h"
#include "app/commands/bench.h"
#include "app/config/input_files.h"
#include "app/console/human_format.h"
#include "app/console/option_checks.h"
#include "app/job/process_memory.h"
#include "data/tokenize_corpus.h"
#include "data/tokenizer_training.h"
#include "kernels/device/device.h"

namespace chaski {
namespace {

struct BenchTokenizeOptions {
  std::vector<std::string> corpus;
  std::string tokenizer;
  std::string directory;
  std::int64_t bytes = std::int64_t{8} << 20;
  std::int32_t vocab_size = 8000;
  int threads = 0;
  BenchEffort effort{.seconds = 0.0, .repetitions = 3};
  bool json = false;
};

std::vector<CorpusFile> corpus_files(const BenchTokenizeOptions& options,
                                     const BenchDirectory& directory) {
  if (!options.corpus.empty()) return find_corpus_files(options.corpus);
  const std::string path = directory.file("text.txt");
  std::ofstream(path, std::ios::binary) << generate_text(options.bytes);
  return find_corpus_files({path});
}

std::shared_ptr<const Tokenizer> tokenizer_of(const BenchTokenizeOptions& options,
                                              const std::vector<CorpusFile>& files) {
  if (!options.tokenizer.empty()) return Tokenizer::load(options.tokenizer);
  CorpusReader reader(files, {});
  TokenizerTraining training;
  training.vocab_size = options.vocab_size;
  training.sample_bytes = std::uint64_t{4} << 20;
  TokenizerTrainingReport report;
  return train_tokenizer(reader, training, report);
}

// The corpus's text, at most about `bytes` of it.
std::vector<std::string> read_text(const std::vector<CorpusFile>& files, std::int64_t bytes) {
  CorpusReader reader(files, {});
  std::vector<std::string> blocks;
  std::int64_t total = 0;
  for (TextBlock block; total < bytes && reader.next(block);) {
    total += std::ssize(block.text);
    blocks.push_back(block.text);
  }
  return blocks;
}

// What spm_encode does with its input, without writing: each line for itself.
void encode_lines(const sentencepiece::SentencePieceProcessor& processor, std::string_view text,
                  std::vector<int>& ids) {
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    processor.Encode(text.substr(0, end), &ids).IgnoreError();
    text.remove_prefix(std::min(end + 1, text.size()));
  }
}

// `make_worker()` gives each thread a function to call with blocks.
template <typename MakeWorker>
void for_each_block(const std::vector<std::string>& blocks, int threads,
                    const MakeWorker& make_worker) {
  std::atomic<std::size_t> next{0};
  const auto work = [&] {
    auto worker = make_worker();
    for (std::size_t i = next++; i < blocks.size(); i = next++) worker(blocks[i]);
  };
  std::vector<std::jthread> others;
  for (int i = 1; i < threads; ++i) others.emplace_back(work);
  work();
}

class TokenizeBenchmark {
 public:
  explicit TokenizeBenchmark(const BenchTokenizeOptions& options)
      : options_(options),
        directory_(options.directory),
        files_(corpus_files(options, directory_)),
        tokenizer_(tokenizer_of(options, files_)),
        blocks_(read_text(files_, options.bytes)),
        threads_(Device::create_cpu(options.threads)->num_threads()) {
    const auto status = processor_.LoadFromSerializedProto(tokenizer_->serialized());
    if (!status.ok()) throw std::runtime_error("SentencePiece: " + status.ToString());
    for (const std::string& block : blocks_) text_bytes_ += std::ssize(block);
  }

  nlohmann::json run() {
    std::vector<int> counts = {1};
    if (threads_ > 1) counts.push_back(threads_);
    std::vector<BenchSeries> series;
    for (const int threads : counts) {
      series.push_back({"sentencepiece", [=, this] { return run_sentencepiece(threads); }});
      series.push_back({"encoder", [=, this] { return run_encoder(threads); }});
      series.push_back({"pipeline", [=, this] { return run_pipeline(threads); }});
    }
    measure(series, options_.effort);
    nlohmann::json lines = nlohmann::json::array();
    for (std::size_t i = 0; i < series.size(); ++i) {
      const std::size_t reference = i / 3 * 3;
      const double ceiling = text_bytes_ / spread_of(series[reference].seconds).best;
      lines.push_back(line_of(series[i], counts[i / 3], ceiling));
    }
    nlohmann::json report;
    report["benchmark"] = "tokenize";
    report["corpus"] = options_.corpus.empty() ? "generated" : "given";
    report["text_bytes"] = text_bytes_;
    report["pipeline_bytes"] = pipeline_bytes_;
    report["vocab_size"] = tokenizer_->vocab_size();
    report["tokens"] = pipeline_tokens_;
    report["lines"] = lines;
    report["peak_resident_bytes"] = peak_resident_bytes();
    return report;
  }

 private:
  nlohmann::json line_of(const BenchSeries& series, int threads, double ceiling) const {
    const Spread spread = spread_of(series.seconds);
    const double bytes = series.name == "pipeline" ? pipeline_bytes_ : text_bytes_;
    nlohmann::json line = to_json(spread);
    line["part"] = series.name;
    line["threads"] = threads;
    line["bytes_per_second"] = bytes / spread.median;
    line["best_bytes_per_second"] = bytes / spread.best;
    line["share"] = bytes / spread.median / ceiling;
    return line;
  }

  double run_sentencepiece(int threads) const {
    return timed([&] {
      for_each_block(blocks_, threads, [this] {
        return [this, ids = std::vector<int>()](const std::string& text) mutable {
          encode_lines(processor_, text, ids);
        };
      });
    });
  }

  double run_encoder(int threads) const {
    return timed([&] {
      for_each_block(blocks_, threads, [this] {
        return [encoder = std::make_unique<Encoder>(tokenizer_),
                ids = std::vector<std::int32_t>()](const std::string& text) mutable {
          ids.clear();
          encoder->encode(text, ids);
        };
      });
    });
  }

  double run_pipeline(int threads) {
    TokenizeOptions options;
    options.out = directory_.file("tokens.h5");
    options.overwrite = true;
    options.creator = "chaski bench";
    options.threads = threads;
    return timed([&] {
      const TokenizeReport report = tokenize_corpus(files_, tokenizer_, options);
      pipeline_bytes_ = static_cast<double>(report.corpus.text_bytes);
      pipeline_tokens_ = report.tokens;
    });
  }

  const BenchTokenizeOptions& options_;
  BenchDirectory directory_;
  std::vector<CorpusFile> files_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<std::string> blocks_;
  sentencepiece::SentencePieceProcessor processor_;
  int threads_;
  double text_bytes_ = 0.0;
  double pipeline_bytes_ = 0.0;
  std::uint64_t pipeline_tokens_ = 0;
};

void print_tokenize(const nlohmann::json& report) {
  const auto bytes_of = [&](const char* key) {
    return format_bytes(static_cast<std::int64_t>(report[key].get<double>()));
  };
  fmt::print("{} of {} text, vocabulary {}; SentencePiece's own encoder is the ceiling\n\n",
             bytes_of("text_bytes"), report["corpus"].get<std::string>(),
             report["vocab_size"].get<int>());
  ReportTable table(
      {"part", "threads", "MB/s", "best MB/s", "median s", "best s", "worst s", "share"});
  for (const nlohmann::json& part : report["lines"]) {
    const ReportLine line(part);
    table.add({line.text("part"), line.integer("threads"), line.number("bytes_per_second", 2, 1e-6),
               line.number("best_bytes_per_second", 2, 1e-6), line.seconds("median", 3),
               line.seconds("best", 3), line.seconds("worst", 3), line.number("share", 3)});
  }
  table.print();
  fmt::print(
      "\nshare     of the best speed of SentencePiece's own encoder with as many threads\n"
      "pipeline  {} of text to {} tokens, written as a token file\nmemory    {} at most\n",
      bytes_of("pipeline_bytes"), report["tokens"].get<std::uint64_t>(),
      bytes_of("peak_resident_bytes"));
}

}  // namespace

void register_bench_tokenize(CLI::App& bench) {
  auto options = std::make_shared<BenchTokenizeOptions>();
  CLI::App* command = bench.add_subcommand(
      "tokenize", "The encoder and all of `chaski tokenize`, beside SentencePiece's encoder");
  command->add_option("corpus", options->corpus, "Text; none: generated")->type_name("CORPUS");
  command
      ->add_option("--tokenizer", options->tokenizer,
                   "SentencePiece model; none: one is trained on the text")
      ->type_name("FILE.model");
  add_count(*command, "--vocab-size", options->vocab_size, "Of the tokenizer that is trained");
  command->add_option("--bytes", options->bytes, "Text to generate, or to encode of what is given")
      ->check(whole_number_between(1, std::int64_t{1} << 40))
      ->capture_default_str();
  command->add_option("--dir", options->directory, "For temporary files")->type_name("DIR");
  add_threads(*command, options->threads, "Compared with one thread; 0: all cores");
  options->effort.add_to(*command);
  add_json(*command, options->json);
  command->callback([options] {
    require_one_process("tokenize");
    if (!options->tokenizer.empty()) check_input_file("--tokenizer", options->tokenizer);
    const nlohmann::json report = TokenizeBenchmark(*options).run();
    options->json ? print_json(report) : print_tokenize(report);
  });
}

}  // namespace chaski
