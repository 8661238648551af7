#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "data/token_file.h"

namespace chaski {

// Writes a token file. It gets its name by commit(), whole and durable; without that nothing
// remains. Errors are std::runtime_error naming the path.
//
// write_header comes first; then per part: begin_part with the final sizes, its tokens and
// documents in any interleaving, end_part.
class TokenFileWriter {
 public:
  struct PartSize {
    std::uint64_t num_tokens = 0;     // >= 1
    std::uint64_t num_documents = 0;  // >= 1
    std::uint64_t num_bytes = 0;      // of the text
  };

  // Creates the temporary file; errors as OutputFile.
  TokenFileWriter(const std::string& path, bool overwrite);
  ~TokenFileWriter();

  void write_header(const TokenFileHeader& header);

  void begin_part(Part part, const PartSize& size);
  // Ids as the file stores them: little-endian, header.bytes_per_token() bytes each.
  void add_tokens(std::span<const std::byte> ids);
  // Where the next document ends, counted in tokens of the part.
  void add_document_end(std::uint64_t end);
  void end_part();

  void commit();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace chaski
