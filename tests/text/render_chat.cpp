// SPDX-License-Identifier: Apache-2.0
// Renders chat templates for comparison with other implementations (tests/text/compare_chat.py):
//   render_chat < cases.jsonl > results.jsonl
// A case is {"template", "messages", "variables", "add_generation_prompt", "bos_token", "eos_token"}, a result
// {"text"} or {"error"}.
#include <graft/text/chat_template.hpp>

#include <nlohmann/json.hpp>

#include <iostream>
#include <string>

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    auto const input = nlohmann::ordered_json::parse(line);
    nlohmann::json result;
    try {
      graft::ChatOptions options;
      options.add_generation_prompt = input.value("add_generation_prompt", false);
      options.bos_token = input.value("bos_token", "");
      options.eos_token = input.value("eos_token", "");
      if (input.contains("variables")) options.variables = input["variables"];
      graft::ChatTemplate const chat(input["template"].get<std::string>());
      result["text"] = chat.render(input["messages"], options);
    } catch (graft::Error const& error) {
      result["error"] = error.what();
    }
    std::cout << result.dump() << '\n';
  }
}
