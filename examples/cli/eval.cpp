// SPDX-License-Identifier: Apache-2.0
// graft eval: accuracy over choices, or perplexity and bits per byte of completions.
#include <examples/cli/command.hpp>

#include <graft/text/completion.hpp>
#include <graft/text/model_tokenizer.hpp>

#include <cstdio>

namespace graft::cli {
namespace eval_command {

enum class Normalize { none, token, byte };

struct Options {
  ModelOptions model;
  std::string data, normalize;
  std::vector<std::string> use, choices;
  index_t max_length = 0;
  bool chat = false;
};

/// A text after a prompt, ready to be scored.
struct Candidate {
  ScoreRequest request;
  index_t bytes = 0;
  double score = 0;  ///< sum of log p
  index_t tokens = 0;
};

struct Question {
  std::vector<Candidate> candidates;  ///< the choices, or the completion alone
  std::size_t gold = 0;
};

class Reader {
 public:
  Reader(Options const& options, Tokenizer const& tokenizer, index_t longest)
      : options_(options), tokenizer_(tokenizer), longest_(longest) {
    uses_ = options.model.uses(options.use);
  }

  std::vector<Question> read() const {
    std::vector<Question> questions;
    for (auto const& line : read_json_lines(options_.data, {"prompt", "completion", "choices"})) {
      auto const prompt = line.get<std::string>("prompt"), completion = line.get<std::string>("completion");
      auto const choices = line.get<std::vector<std::string>>("choices", options_.choices);
      Question question;
      if (choices.empty()) {
        question.candidates.push_back(candidate(line, prompt, completion));
      } else {
        auto const gold = std::find(choices.begin(), choices.end(), completion);
        if (gold == choices.end()) line.fail("the completion is none of the choices");
        question.gold = static_cast<std::size_t>(gold - choices.begin());
        for (auto const& choice : choices) question.candidates.push_back(candidate(line, prompt, choice));
      }
      if (!questions.empty() && (questions[0].candidates.size() == 1) != (question.candidates.size() == 1))
        line.fail("some lines have choices and some have not");
      questions.push_back(std::move(question));
    }
    return questions;
  }

 private:
  Candidate candidate(JsonLine const& line, std::string const& prompt, std::string const& completion) const {
    auto joined = line.checked([&] {
      return join_completion(tokenizer_, prompt_tokens(tokenizer_, prompt, options_.chat),
                             tokenizer_.encode(completion, false, false), longest_);
    });
    Candidate result;
    result.request.first = result.request.prompt_tokens = joined.prompt;
    result.request.adapters = uses_;
    result.bytes = static_cast<index_t>(completion.size());
    result.tokens = joined.size();
    result.request.tokens = std::move(joined.tokens);
    return result;
  }

  Options const& options_;
  Tokenizer const& tokenizer_;
  index_t longest_;
  std::vector<AdapterUse> uses_;
};

// Batches of about a thousand rows, and few enough scored ones that their logits stay small.
void score(Engine& engine, std::vector<Question>& questions) {
  std::vector<Candidate*> all;
  for (auto& question : questions)
    for (auto& candidate : question.candidates) all.push_back(&candidate);
  for (std::size_t first = 0; first < all.size();) {
    std::vector<ScoreRequest> batch;
    index_t rows = 0, scored = 0;
    std::size_t last = first;
    for (; last < all.size() && (batch.empty() || (rows < 1024 && scored < 128)); ++last) {
      batch.push_back(all[last]->request);
      rows += static_cast<index_t>(batch.back().tokens.size());
      scored += all[last]->tokens;
    }
    auto const results = engine.scores(batch);
    for (std::size_t k = 0; k < results.size(); ++k)
      for (double log_p : results[k]) all[first + k]->score += log_p;
    first = last;
  }
}

double normalized(Candidate const& candidate, Normalize by) {
  if (by == Normalize::token) return candidate.score / static_cast<double>(candidate.tokens);
  if (by == Normalize::byte) return candidate.score / static_cast<double>(std::max<index_t>(1, candidate.bytes));
  return candidate.score;
}

void run(Options const& options) {
  Tokenizer const tokenizer(read_tokenizer(options.model.model));
  auto const engine = options.model.open();
  index_t const longest = options.max_length > 0 ? options.max_length : engine->config().positions;
  auto questions = Reader(options, tokenizer, longest).read();
  score(*engine, questions);
  nlohmann::ordered_json out;
  out["lines"] = questions.size();
  if (questions[0].candidates.size() > 1) {
    auto const by = options.normalize == "token"  ? Normalize::token
                    : options.normalize == "byte" ? Normalize::byte
                                                  : Normalize::none;
    index_t right = 0;
    for (auto const& question : questions) {
      std::size_t best = 0;
      for (std::size_t k = 1; k < question.candidates.size(); ++k)
        if (normalized(question.candidates[k], by) > normalized(question.candidates[best], by)) best = k;
      right += best == question.gold ? 1 : 0;
    }
    out["right"] = right;
    out["accuracy"] = static_cast<double>(right) / static_cast<double>(questions.size());
  } else {
    double sum = 0;
    index_t tokens = 0, bytes = 0;
    for (auto const& question : questions) {
      sum += question.candidates[0].score;
      tokens += question.candidates[0].tokens;
      bytes += question.candidates[0].bytes;
    }
    out["tokens"] = tokens;
    out["bytes"] = bytes;
    out["loss"] = -sum / static_cast<double>(tokens);
    out["perplexity"] = std::exp(-sum / static_cast<double>(tokens));
    out["bits_per_byte"] = -sum / static_cast<double>(bytes) / std::log(2.0);
  }
  if (options.model.json) {
    std::printf("%s\n", out.dump().c_str());
    return;
  }
  for (auto const& [key, value] : out.items()) std::printf("%-14s %s\n", key.c_str(), value.dump().c_str());
}

}  // namespace eval_command

void add_eval(CLI::App& app) {
  using namespace eval_command;
  auto const options = std::make_shared<Options>();
  auto* const command = app.add_subcommand("eval", "accuracy over choices, or perplexity of completions");
  options->model.add_to(*command);
  command->add_option("--data", options->data, "lines {\"prompt\", \"completion\", \"choices\"}")->required();
  command->add_option("--use", options->use, "NAME or NAME=WEIGHT of an adapter; repeatable")->take_all();
  command->add_option("--choices", options->choices, "a,b,...: score these instead of the completion alone")
      ->delimiter(',');
  command->add_option("--normalize", options->normalize, "divide a choice's log p by its tokens or bytes")
      ->check(CLI::IsMember({"token", "byte"}));
  command->add_option("--max-length", options->max_length, "tokens of prompt and completion; 0: the model's context")
      ->check(CLI::Range(0, 1 << 24));
  command->add_flag("--chat", options->chat, "apply the model's chat template to the prompt");
  command->callback([options] { run(*options); });
}

}  // namespace graft::cli
