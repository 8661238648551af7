#include "data/token_file.h"

#include <cstring>
#include <gmock/gmock.h>
#include <hdf5.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "data/background_verification.h"
#include "data/output_file.h"
#include "data/token_file_writer.h"
#include "tests/data/fixtures.h"

#ifdef __SANITIZE_ADDRESS__
// HDF5 1.10 loses a little memory whenever it finds a file damaged.
extern "C" const char* __lsan_default_suppressions() {
  return "leak:libhdf5";
}
#endif

namespace chaski {
namespace {

using namespace chaski::testing;
using ::testing::HasSubstr;

TokenFileHeader header_of(const Tokenizer& tokenizer, std::uint64_t vocab_size) {
  TokenFileHeader header;
  header.creator = "test";
  header.tokenizer_fingerprint = tokenizer.fingerprint();
  header.tokenizer_model = tokenizer.serialized();
  header.vocab_size = vocab_size;
  header.eos_id = 2;
  header.sources = {{"a b.txt", 123}, {"c\xFF.jsonl", 0}};
  return header;
}

template <class Id>
void write_part(TokenFileWriter& writer, Part part, const std::vector<Id>& ids,
                const std::vector<std::uint64_t>& ends) {
  writer.begin_part(part, {ids.size(), ends.size(), ids.size() * 3});
  for (const Id& id : ids) writer.add_tokens(std::as_bytes(std::span(&id, 1)));
  for (const std::uint64_t end : ends) writer.add_document_end(end);
  writer.end_part();
}

class TokenFileTest : public ::testing::Test {
 protected:
  // A file with 40 tokens in 4 documents and a validation part of 5 in one.
  std::string write_small(const std::string& name = "a.h5") {
    const auto path = folder_.path(name);
    TokenFileHeader header = header_of(*small_tokenizer(), 600);
    header.split = "by hand";
    TokenFileWriter writer(path, true);
    writer.write_header(header);
    std::vector<std::uint16_t> ids(40);
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::uint16_t>(i * 15);
    write_part(writer, Part::train, ids, {10, 11, 25, 40});
    write_part(writer, Part::validation, std::vector<std::uint16_t>{5, 6, 7, 8, 2}, {5});
    writer.commit();
    return path;
  }
  TemporaryFolder folder_;
};

TEST_F(TokenFileTest, HoldsWhatWasWritten) {
  const auto path = write_small();
  const auto file = TokenFile::open(path);
  EXPECT_EQ(file->header().creator, "test");
  EXPECT_EQ(file->header().vocab_size, 600u);
  EXPECT_EQ(file->header().eos_id, 2u);
  EXPECT_EQ(file->header().split, "by hand");
  EXPECT_EQ(file->header().tokenizer_model, small_tokenizer()->serialized());
  ASSERT_EQ(file->header().sources.size(), 2u);
  EXPECT_EQ(file->header().sources[0].path, "a b.txt");
  EXPECT_EQ(file->header().sources[0].bytes, 123u);
  const TokenPart& train = file->part(Part::train);
  EXPECT_EQ(train.num_tokens(), 40u);
  EXPECT_EQ(train.num_documents(), 4u);
  EXPECT_EQ(train.num_bytes(), 120u);
  std::vector<std::int32_t> ids(7);
  train.read(33, 7, ids.data());
  EXPECT_THAT(ids, ::testing::ElementsAre(495, 510, 525, 540, 555, 570, 585));
  EXPECT_THROW(train.read(34, 7, ids.data()), std::out_of_range);
  EXPECT_THROW(train.read(~0ull, 7, ids.data()), std::out_of_range);
  const std::uint64_t starts[] = {0, 10, 11, 25, 40};
  for (std::uint64_t token = 0; token < 40; ++token) {
    const std::uint64_t document = train.document_of(token);
    EXPECT_LE(starts[document], token);
    EXPECT_GT(starts[document + 1], token);
  }
  EXPECT_THROW(train.document_of(40), std::out_of_range);
  EXPECT_EQ(file->part(Part::validation).num_tokens(), 5u);
  train.verify_checksum();
  file->part(Part::validation).verify_checksum();
  EXPECT_TRUE(TokenFile::is_token_file(path));
}

TEST_F(TokenFileTest, LargeVocabulariesTakeFourBytes) {
  const auto path = folder_.path("a.h5");
  TokenFileWriter writer(path, false);
  writer.write_header(header_of(*small_tokenizer(), 65537));
  write_part(writer, Part::train, std::vector<std::uint32_t>{65536, 7, 2}, {3});
  writer.commit();
  const auto file = TokenFile::open(path);
  std::vector<std::int32_t> ids(3);
  file->part(Part::train).read(0, 3, ids.data());
  EXPECT_THAT(ids, ::testing::ElementsAre(65536, 7, 2));
  EXPECT_FALSE(file->has_part(Part::validation));
  EXPECT_THAT(message_of<std::invalid_argument>([&] { file->part(Part::validation); }),
              HasSubstr("a.h5: has no validation part"));
}

TEST_F(TokenFileTest, AnyHdf5ProgramCanReadIt) {
  const auto path = write_small();
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  const hid_t dataset = H5Dopen2(file, "/validation/tokens", H5P_DEFAULT);
  std::vector<int> ids(5);
  ASSERT_GE(H5Dread(dataset, H5T_NATIVE_INT, H5S_ALL, H5S_ALL, H5P_DEFAULT, ids.data()), 0);
  EXPECT_THAT(ids, ::testing::ElementsAre(5, 6, 7, 8, 2));
  H5Dclose(dataset);
  H5Fclose(file);
}

TEST_F(TokenFileTest, OtherFilesAreRefused) {
  EXPECT_THAT(message_of<std::runtime_error>([&] { TokenFile::open(folder_.path("none.h5")); }),
              HasSubstr("none.h5: the token file cannot be opened: No such file"));
  for (const auto& path : {folder_.write("text.h5", "no HDF5 at all"),
                           folder_.write("empty.h5", ""), folder_.path()}) {
    EXPECT_THAT(message_of<std::invalid_argument>([&] { TokenFile::open(path); }),
                HasSubstr(path + ": is not a token file"));
    EXPECT_FALSE(TokenFile::is_token_file(path));
  }
  for (const auto version : {H5F_LIBVER_EARLIEST, H5F_LIBVER_LATEST}) {
    const auto path = folder_.path("other.h5");
    const hid_t access = H5Pcreate(H5P_FILE_ACCESS);
    H5Pset_libver_bounds(access, version, H5F_LIBVER_LATEST);
    H5Fclose(H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, access));
    H5Pclose(access);
    EXPECT_THROW(TokenFile::open(path), std::invalid_argument);
    EXPECT_FALSE(TokenFile::is_token_file(path));
  }
}

TEST_F(TokenFileTest, DamageThatLeavesValidIdsIsNoticedInTheBackground) {
  const auto path = write_small();
  const auto intact = TokenStream::open({path}, Part::train);
  BackgroundVerification nothing({intact, TokenStream::open({path}, Part::validation)});
  EXPECT_NO_THROW(nothing.wait());
  EXPECT_TRUE(nothing.done());

  std::string damaged = read_file(path);
  const std::size_t at = damaged.find(std::string("\x3A\x02\x49\x02", 4));  // 570, 585
  ASSERT_NE(at, std::string::npos);
  damaged[at] = '\x3B';
  const auto stream = TokenStream::open({folder_.write("b.h5", damaged)}, Part::train);
  std::vector<std::int32_t> ids(40);
  EXPECT_NO_THROW(stream->read(0, 40, ids.data()));
  BackgroundVerification verification({intact, stream});
  EXPECT_THAT(message_of<std::runtime_error>([&] { verification.wait(); }),
              HasSubstr("b.h5 (train part): the checksum of its tokens is wrong"));
  EXPECT_NO_THROW(verification.check()) << "told once";
}

TEST_F(TokenFileTest, DamageIsNoticed) {
  const auto path = write_small();
  const std::string content = read_file(path);
  // An id outside the vocabulary: the last token of the train part, 585.
  std::string damaged = content;
  const char last[] = {'\x3A', '\x02', '\x49', '\x02'};  // 570, 585
  const std::size_t at = damaged.find(std::string(last, 4));
  ASSERT_NE(at, std::string::npos);
  damaged[at + 3] = '\x7F';
  const auto file = TokenFile::open(folder_.write("b.h5", damaged));
  const TokenPart& train = file->part(Part::train);
  std::vector<std::int32_t> ids(40);
  EXPECT_THAT(message_of<std::runtime_error>([&] { train.read(0, 40, ids.data()); }),
              HasSubstr("token 39 has id 32585, outside the vocabulary of 600"));
  EXPECT_THAT(message_of<std::runtime_error>([&] { train.verify_checksum(); }),
              HasSubstr("b.h5 (train part): the checksum of its tokens is wrong"));
  for (std::size_t size = 0; size < content.size(); size += 61) {
    EXPECT_THROW(TokenFile::open(folder_.write("c.h5", content.substr(0, size))), std::exception);
  }
}

// Does everything with a file that may hold nonsense.
void use(const std::string& path) {
  const auto file = TokenFile::open(path);
  for (const Part part : {Part::train, Part::validation}) {
    if (!file->has_part(part)) continue;
    const TokenPart& tokens = file->part(part);
    std::vector<std::int32_t> ids(16);
    const std::uint64_t count = std::min<std::uint64_t>(16, tokens.num_tokens());
    tokens.read(tokens.num_tokens() - count, count, ids.data());
    tokens.document_of(tokens.num_tokens() / 2);
    tokens.verify_checksum();
  }
}

TEST_F(TokenFileTest, MutatedFilesAreReadOrRefused) {
  const std::string content = read_file(write_small());
  std::mt19937 generator(1);
  int read = 0, refused = 0;
  for (int i = 0; i < 3000; ++i) {
    std::string mutant = content;
    const unsigned mutations = 1 + generator() % 4;
    for (unsigned m = 0; m < mutations; ++m) {
      // Mostly where HDF5 keeps its metadata: at the front and behind the arrays.
      const std::size_t at = generator() % 2 ? generator() % mutant.size() : generator() % 2048;
      mutant[at] = static_cast<char>(generator() % 3 == 0 ? 0xFF : generator());
    }
    const auto path = folder_.write("mutant.h5", mutant);
    try {
      use(path);
      ++read;
    } catch (const std::exception& error) {
      EXPECT_THAT(error.what(), HasSubstr("mutant.h5"));
      ++refused;
    }
    TokenFile::is_token_file(path);
  }
  // A mutation may hit padding; most must be noticed.
  EXPECT_GT(refused, 500) << read;
}

TEST_F(TokenFileTest, NothingAppearsWithoutCommit) {
  {
    TokenFileWriter writer(folder_.path("a.h5"), false);
    writer.write_header(header_of(*small_tokenizer(), 600));
    EXPECT_FALSE(fs::exists(folder_.path("a.h5")));
  }
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

TEST_F(TokenFileTest, ExistingFilesAreOnlyReplacedOnDemand) {
  const auto path = write_small();
  const std::string error =
      message_of<std::invalid_argument>([&] { TokenFileWriter writer(path, false); });
  EXPECT_THAT(error, HasSubstr("a.h5: exists already"));
  EXPECT_THAT(error, HasSubstr("hint: pass --force"));
  EXPECT_THROW(TokenFileWriter(folder_.path(), true), std::invalid_argument);
  EXPECT_THAT(message_of<std::runtime_error>(
                  [&] { TokenFileWriter writer(folder_.path("no/such/a.h5"), false); }),
              HasSubstr("cannot be created: No such file"));
}

TEST_F(TokenFileTest, AFullDiskIsReported) {
  // A limit on the size of files stands for a full disk.
  const auto path = folder_.path("a.h5");
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit before{};
  ::getrlimit(RLIMIT_FSIZE, &before);
  rlimit small = before;
  small.rlim_cur = 64 * 1024;
  std::string error;
  {
    TokenFileWriter writer(path, false);
    writer.write_header(header_of(*small_tokenizer(), 600));
    ::setrlimit(RLIMIT_FSIZE, &small);
    error = message_of<std::runtime_error>([&] {
      write_part(writer, Part::train, std::vector<std::uint16_t>(100000, 7), {100000});
      writer.commit();
    });
  }
  ::setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_THAT(error, HasSubstr("a.h5: cannot be written: File too large"));
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

TEST_F(TokenFileTest, LeftoversOfDeadProcessesAreRemoved) {
  const auto dead = folder_.write(".a.h5.tmp-99999999", "x");
  const auto alive = folder_.write(".a.h5.tmp-1", "x");
  const auto other = folder_.write(".b.h5.tmp-99999999", "x");
  write_small();
  EXPECT_FALSE(fs::exists(dead));
  EXPECT_TRUE(fs::exists(alive));
  EXPECT_TRUE(fs::exists(other));
}

TEST_F(TokenFileTest, InterruptionRemovesTheTemporaryFile) {
  const pid_t child = ::fork();
  if (child == 0) {
    remove_temporary_files_on_signals();
    const OutputFile output(folder_.path("a.h5"), false);
    ::raise(SIGTERM);
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
  EXPECT_TRUE(fs::is_empty(folder_.path()));
}

}  // namespace
}  // namespace chaski
