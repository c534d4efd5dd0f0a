# SPDX-License-Identifier: Apache-2.0
"""Compares graft's chat templates with transformers' on conversations of many shapes.

    python tests/text/compare_chat.py RENDER_CHAT TEMPLATE.jinja...

RENDER_CHAT is the built program of tests/text/render_chat.cpp. A template that graft refuses as a whole is reported,
not counted as different. Needs: transformers, jinja2.
"""
import json
import pathlib
import subprocess
import sys

from transformers.utils.chat_template_utils import _compile_jinja_template

TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "The weather, \"now\" & <here>.", "parameters": {
    "type": "object", "properties": {"city": {"type": "string", "description": "Stadt für ünïcode"},
                                     "days": {"type": "integer", "minimum": 1, "default": 2.5}}, "required": ["city"]}}}]
CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Köln", "days": 3, "x": None}}}


def message(role, content, **more):
    return {"role": role, "content": content, **more}


CONVERSATIONS = {
    "one": [message("user", "Hi there!")],
    "spaced": [message("user", "  Hi \n there!\n\n")],
    "system": [message("system", " Be brief. "), message("user", "Hi")],
    "turns": [message("user", "a"), message("assistant", "b"), message("user", "c"), message("assistant", " d ")],
    "system turns": [message("system", "S"), message("user", "a"), message("assistant", "b\n"), message("user", "c 'q' \"r\"")],
    "think": [message("user", "2+2?"), message("assistant", "<think>\nfour\n</think>\n\n4"), message("user", "sure?"),
              message("assistant", "<think>\nyes\n</think>\n\nYes.")],
    "reasoning": [message("user", "2+2?"), message("assistant", "4", reasoning_content="\nhm\n"), message("user", "sure?")],
    "wrong order": [message("assistant", "b"), message("user", "a")],
    "two users": [message("user", "a"), message("user", "b")],
    "odd role": [message("user", "a"), message("narrator", "b")],
    "tool call": [message("user", "weather?"), message("assistant", "", tool_calls=[CALL]),
                  message("tool", "{\"t\": 20}", tool_call_id="abcdefghi", name="get_weather"), message("assistant", "20 degrees")],
    "tool call none": [message("system", "S"), message("user", "weather?"), message("assistant", None, tool_calls=[CALL, CALL]),
                       message("tool", "1", tool_call_id="abcdefghi"), message("tool", "2", tool_call_id="abcdefghi"),
                       message("user", "and?")],
    "text call": [message("user", "w"), message("assistant", "c", tool_calls=[
        {"function": {"name": "f", "arguments": "{\"a\": 1}"}}]), message("tool", "x")],
    "parts": [message("user", [{"type": "text", "text": "look"}, {"type": "image", "image": "x.png"}]), message("assistant", "ok")],
    "empty": [],
}
VARIABLES = [{}, {"tools": TOOLS}, {"enable_thinking": False}, {"enable_thinking": True, "tools": TOOLS + TOOLS},
             {"date_string": "26 Jul 2024", "custom_tools": TOOLS, "tools_in_user_message": False},
             {"builtin_tools": ["brave_search", "code_interpreter"], "date_string": "1", "documents": []}]


def render(case):
    """What transformers makes of a case; None where it refuses, for whatever reason."""
    try:
        return _compile_jinja_template(case["template"]).render(
            messages=case["messages"], add_generation_prompt=case["add_generation_prompt"], bos_token="<s>",
            eos_token="</s>", **case["variables"])
    except Exception:
        return None


def main():
    program, *paths = sys.argv[1:]
    cases = []
    for path in paths:
        source = pathlib.Path(path).read_text(encoding="utf-8")
        for name, messages in CONVERSATIONS.items():
            for k, variables in enumerate(VARIABLES):
                for prompt in (False, True):
                    cases.append((pathlib.Path(path).name, name, k, {
                        "template": source, "messages": messages, "variables": variables, "add_generation_prompt": prompt,
                        "bos_token": "<s>", "eos_token": "</s>"}))
    run = subprocess.run([program], input="".join(json.dumps(case[-1]) + "\n" for case in cases), capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    results = [json.loads(line) for line in run.stdout.split("\n")[:-1]]
    assert len(results) == len(cases), (len(results), len(cases))
    wrong, texts, errors, refused, shown = 0, 0, 0, {}, {}
    for (path, name, k, case), result in zip(cases, results):
        if "' is not supported" in result.get("error", ""):
            refused.setdefault((path, result["error"]), 0)
            refused[path, result["error"]] += 1
            continue
        expected = render(case)
        if expected is None and "error" in result:
            errors += 1
        elif result.get("text") == expected:
            texts += 1
        else:
            wrong += 1
            shown[path] = shown.get(path, 0) + 1
            if shown[path] <= 2:
                print(f"{path} '{name}' {k}\n  hf    {expected!r}\n  graft {result!r}")
    for (path, error), count in refused.items():
        print(f"{path}: {count} cases refused: {error}")
    print(f"{texts} equal texts, {errors} equally refused, {wrong} different")
    sys.exit(wrong != 0)


if __name__ == "__main__":
    main()
