// SPDX-License-Identifier: Apache-2.0
// Any bytes as a chat template: rendered, or refused by graft or by the template itself.
#include <tests/fuzz/fuzz.hpp>

#include <graft/text/chat_template.hpp>

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string_view>

int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static auto const messages = nlohmann::ordered_json::parse(R"([
    {"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi \n"},
    {"role": "assistant", "content": "Hello", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]},
    {"role": "tool", "content": "2"}, {"role": "user", "content": [{"type": "text", "text": "And?"}]}])");
  graft_fuzz::accept_or_refuse([&] {
    try {
      graft::ChatOptions options;
      options.bos_token = "<s>", options.eos_token = "</s>";
      options.now = 0;
      graft::ChatTemplate({reinterpret_cast<char const*>(data), size}).render(messages, options);
    } catch (graft::ContractError const&) {  // the template's own raise_exception
    }
  });
  return 0;
}
