// SPDX-License-Identifier: Apache-2.0
#include <examples/cli/command.hpp>
#include <examples/cli/model_output.hpp>

#include <graft/io/mapped_file.hpp>

#include <unistd.h>

#include <array>
#include <cstdio>

namespace graft::cli {
namespace {

constexpr std::array types = {Format::f32,  Format::f16,  Format::bf16, Format::q8_0, Format::q4_0, Format::q4_1,
                              Format::q5_0, Format::q5_1, Format::q4_k, Format::q5_k, Format::q6_k};

std::string lower(std::string name) {
  for (char& c : name) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return name;
}

}  // namespace

std::optional<Format> parse_type(std::string const& name) {
  if (name.empty()) return std::nullopt;
  std::string known;
  for (Format const format : types) {
    auto const one = lower(format_info(format).name);
    if (one == lower(name)) return format;
    known += (known.empty() ? "" : ", ") + one;
  }
  throw UsageError(text("--type ", name, " is not known; there are ", known));
}

Companions other_files(std::filesystem::path const& folder) {
  Companions files;
  for (char const* name :
       {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
        "vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "generation_config.json"})
    if (std::filesystem::exists(folder / name)) files[name] = MappedFile::open(folder / name)->characters();
  return files;
}

Progress::Progress(std::size_t total) : live_(::isatty(2) == 1), total_(total) {}
Progress::~Progress() {
  if (live_) std::fprintf(stderr, "\r\033[K");
}
void Progress::operator()(TensorInfo const& tensor) {
  if (live_) std::fprintf(stderr, "\r\033[K%zu/%zu %s", ++done_, total_, tensor.name.c_str());
}

}  // namespace graft::cli
