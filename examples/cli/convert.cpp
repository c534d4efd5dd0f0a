// SPDX-License-Identifier: Apache-2.0
// graft convert: models between GGUF files and Hugging Face folders, and between formats of their weights; LoRA
// adapters between PEFT folders and GGUF files.
#include <examples/cli/command.hpp>
#include <examples/cli/model_output.hpp>

#include <graft/io/gguf_config.hpp>
#include <graft/io/gguf_lora.hpp>
#include <graft/io/gguf_model.hpp>
#include <graft/io/hf_config.hpp>
#include <graft/io/hf_model.hpp>
#include <graft/io/output_folder.hpp>
#include <graft/text/gguf_tokenizer.hpp>
#include <graft/text/gguf_tokenizer_writer.hpp>
#include <graft/text/hf_tokenizer.hpp>
#include <graft/text/hf_tokenizer_writer.hpp>
#include <graft/text/model_tokenizer.hpp>

#include <algorithm>
#include <cstdio>
#include <map>
#include <optional>

namespace graft::cli {
namespace convert_command {

namespace fs = std::filesystem;

struct Options {
  std::string in, out, model, type;
  index_t threads = 0;
  bool json = false;
};

std::optional<Format> type_of(Options const& options) { return parse_type(options.type); }

/// What was written, for the line or the JSON object at the end.
struct Written {
  std::string kind, file, architecture;
  std::vector<TensorInfo> tensors;
  std::vector<std::string> notes;  ///< for standard error, once all went well
};

std::vector<TensorInfo> tensors_of(std::vector<TensorConversion> const& conversions) {
  std::vector<TensorInfo> tensors;
  for (auto const& conversion : conversions) tensors.push_back(conversion.to);
  return tensors;
}

Written save(Options const& options, GgufModel const& model) {
  Progress progress(model.tensors.size());
  ThreadPool pool(options.threads);
  write_gguf(options.out, model.metadata, model.tensors, pool, std::ref(progress));
  return {"model", "gguf", model.metadata.get<std::string>("general.architecture"), tensors_of(model.tensors),
          model.notes};
}

Written save(Options const& options, HfModel const& model, Companions const& companions) {
  OutputFolder folder(options.out);
  auto const put = [&](std::string const& name, std::string_view content) {
    OutputFile file(folder / name);
    file.write(content);
    file.commit();
  };
  put("config.json", model.config.dump(2) + "\n");
  for (auto const& [name, content] : companions) put(name, content);
  Progress progress(model.tensors.size());
  ThreadPool pool(options.threads);
  write_safetensors(folder / "model.safetensors", model.tensors, pool, std::ref(progress));
  folder.commit();
  return {"model", "hf", model.config.value("model_type", ""), tensors_of(model.tensors), model.notes};
}

bool has_tokenizer(Gguf const& file) {
  return file.metadata.get_or<std::string_view>("tokenizer.ggml.model", "none") != "none";
}

Companions tokenizer_files(Gguf const& file, index_t positions) {
  auto const spec = read_gguf_tokenizer(file.metadata, file.tensors.path());
  check_spec(spec);
  Companions files;
  files["tokenizer.json"] = hf_tokenizer(spec).dump(1) + "\n";
  files["tokenizer_config.json"] = hf_tokenizer_config(spec, positions).dump(2) + "\n";
  nlohmann::json generation = nlohmann::json::object();
  if (spec.bos >= 0) generation["bos_token_id"] = spec.bos;
  if (spec.padding >= 0) generation["pad_token_id"] = spec.padding;
  for (auto const id : {spec.eos, spec.end_of_turn})
    if (auto& all = generation["eos_token_id"]; id >= 0 && std::find(all.begin(), all.end(), id) == all.end())
      all.push_back(id);
  files["generation_config.json"] = generation.dump(2) + "\n";
  return files;
}

Written convert_gguf(Options const& options, bool to_gguf) {
  auto const file = read_gguf(options.in);
  if (to_gguf) return save(options, gguf_model(file, type_of(options)));
  auto model = hf_model(file, type_of(options));
  if (has_tokenizer(file)) return save(options, model, tokenizer_files(file, read_gguf_config(file).positions));
  model.notes.push_back("there is no tokenizer in the file, so there is none in the folder");
  return save(options, model, {});
}

Written convert_hf(Options const& options, bool to_gguf) {
  fs::path const in = options.in;
  bool const folder = fs::is_directory(in);
  fs::path const home = folder ? in : in.parent_path();
  auto const tensors = folder || in.extension() == ".json" ? read_sharded_safetensors(in) : read_safetensors(in);
  if (!to_gguf)
    return save(options, hf_model(read_json<nlohmann::ordered_json>(home / "config.json"), tensors, type_of(options)),
                other_files(home));
  auto const config = read_hf_config(home / "config.json");
  auto model = gguf_model(config, tensors, type_of(options));
  if (fs::exists(home / "tokenizer.json")) {
    auto const spec = read_hf_tokenizer(home);
    check_spec(spec);
    auto const notes = write_gguf_tokenizer(spec, config.vocabulary, model.metadata);
    model.notes.insert(model.notes.end(), notes.begin(), notes.end());
  } else {
    model.notes.push_back("there is no tokenizer.json in the folder, so there is no tokenizer in the file");
    model.metadata.set("tokenizer.ggml.model", "none");
  }
  return save(options, model);
}

Written convert_adapter(Options const& options, bool from_gguf, bool to_gguf) {
  if (options.model.empty())
    throw UsageError("an adapter needs --model: names, shapes and the order of rows are the model's");
  auto const type = type_of(options).value_or(Format::f32);
  if (type != Format::f32 && type != Format::f16 && type != Format::bf16)
    throw UsageError("adapters are written as f32, f16 or bf16");
  auto const engine = make_engine(open_model(options.model), {1});
  auto const& sites = engine->sites();
  auto const name = fs::path(options.in).stem().string();

  AnyModule<CommandAdapters, CommandBackend> read;
  if (from_gguf) {
    auto lora = read_gguf_lora<CommandBackend>(options.in, sites, name, engine->config());
    lora.module.task_type = "CAUSAL_LM";
    read.module = std::move(lora.module);
    read.warnings = std::move(lora.warnings);
  } else {
    read = read_any_peft<CommandAdapters, CommandBackend>(options.in, sites, name);
  }
  Written written{"adapter", to_gguf ? "gguf" : "peft", engine->config().architecture, {}, read.warnings};
  auto const write = [&]<class P>(Module<P, CommandBackend> const& module) {
    if (!to_gguf) {
      write_peft(options.out, module, sites, {type});
      written.tensors = read_safetensors(fs::path(options.out) / "adapter_model.safetensors").tensors();
    } else if constexpr (std::is_same_v<P, LoRADelta>) {
      write_gguf_lora(options.out, module, sites, engine->config(), type);
      written.tensors = read_gguf(options.out).tensors.tensors();
    } else {
      expects(false, "is of peft_type ", P::peft_type, "; only LORA can be a GGUF adapter");
    }
  };
  checked_at(options.in, [&] { std::visit(write, read.module); });
  return written;
}

void report(Options const& options, Written const& written) {
  for (auto const& note : written.notes) std::fprintf(stderr, "graft: note: %s\n", note.c_str());
  std::map<std::string, index_t> formats;
  std::size_t bytes = 0;
  for (auto const& tensor : written.tensors) ++formats[format_info(tensor.format).name], bytes += tensor.bytes;
  if (options.json) {
    std::printf("%s\n", nlohmann::ordered_json{{"out", options.out},
                                               {"kind", written.kind},
                                               {"file", written.file},
                                               {"architecture", written.architecture},
                                               {"tensors", written.tensors.size()},
                                               {"bytes", bytes},
                                               {"tensor_formats", formats}}
                            .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace)
                            .c_str());
    return;
  }
  std::string list;
  for (auto const& [name, count] : formats) list += text(list.empty() ? "" : ", ", count, " ", name);
  std::printf("%s: %s of a %s %s, %zu tensors (%s), %.1f MB\n", options.out.c_str(),
              written.file == "gguf" ? "GGUF file" : "folder", written.architecture.c_str(), written.kind.c_str(),
              written.tensors.size(), list.c_str(), static_cast<double>(bytes) * 1e-6);
}

bool is_gguf_lora(fs::path const& path) {
  return read_gguf(path).metadata.get_or<std::string_view>("general.type", "") == "adapter";
}

void run(Options const& options) {
  if (!fs::exists(options.in)) raise<FormatError>(options.in, ": does not exist");
  auto const extension = fs::path(options.out).extension();
  bool const to_gguf = extension == ".gguf", from_gguf = is_gguf(options.in);
  if (extension == ".safetensors" || extension == ".json" || extension == ".bin")
    throw UsageError(text("OUT is a file that ends in .gguf or a folder, not ", options.out));
  bool const adapter = from_gguf ? is_gguf_lora(options.in)
                                 : fs::exists(fs::path(options.in) / "adapter_config.json") &&
                                       !fs::exists(fs::path(options.in) / "config.json");
  if (adapter) return report(options, convert_adapter(options, from_gguf, to_gguf));

  if (!options.model.empty()) throw UsageError("--model is for adapters; IN is a model");
  if (auto const type = type_of(options); !to_gguf && type && format_info(*type).block > 1)
    throw UsageError(text("a folder's safetensors cannot hold ", options.type, "; f32, f16 and bf16 they can"));
  make_engine(open_model(options.in), {1});  // every tensor the architecture needs is there and of the right shape
  report(options, from_gguf ? convert_gguf(options, to_gguf) : convert_hf(options, to_gguf));
}

}  // namespace convert_command

void add_convert(CLI::App& app) {
  using namespace convert_command;
  auto const options = std::make_shared<Options>();
  auto* const command = app.add_subcommand(
      "convert", "models between GGUF and Hugging Face folders and formats, LoRA between PEFT and GGUF");
  command->add_option("in", options->in, "GGUF file, safetensors file, model folder, PEFT folder or GGUF LoRA")
      ->required();
  command->add_option("out", options->out, "a file that ends in .gguf, or a folder")->required();
  command->add_option("--model", options->model, "an adapter's base model");
  command->add_option("--type", options->type,
                      "format of the matrices: f32, f16, bf16; in GGUF also q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q5_k, "
                      "q6_k; without it no value changes");
  command->add_option("--threads", options->threads, "threads to compute with; 0: one per core")
      ->check(CLI::Range(0, 1024));
  command->add_flag("--json", options->json, "print one JSON object");
  command->callback([options] { run(*options); });
}

}  // namespace graft::cli
