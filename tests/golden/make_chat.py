# SPDX-License-Identifier: Apache-2.0
"""Golden file of the chat template tests: tests/golden/data/text_chat.json.

    python tests/golden/make_chat.py

Templates in the manner of the model families (each with the constructs that family's own template uses) and small ones
that try one construct each, with what transformers makes of them; "text" is null where it refuses. The models' own
templates are compared by tests/text/compare_chat.py. Needs: transformers, jinja2.
"""
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "text"))
from compare_chat import CONVERSATIONS, TOOLS, render  # noqa: E402

SMOLLM2 = (  # as the GGUF file of SmolLM2-135M-Instruct has it
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a"
    " helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role']"
    " + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{"
    " '<|im_start|>assistant\n' }}{% endif %}")

LLAMA2 = """\
{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}
{% else %}{% set rest = messages %}{% set system = false %}{% endif %}
{% for m in rest %}
{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + m['content'] %}
{% else %}{% set content = m['content'] %}{% endif %}
{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{% elif m['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}
{% endfor %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined and today is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}

{#- The system message comes first, -#}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday: " + date_string + "\\n" }}
{%- if builtin_tools is defined %}
    {{- "Builtin: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\\n" }}
{%- endif %}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("one tool call at a time") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{ call.arguments | tojson }}
        {{- "}<|eot_id|>" }}
    {%- elif message.role == "tool" %}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN3 = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and reasoning)) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' ~ message.role ~ '\\n' ~ content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' + call.name + '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

MISTRAL = """\
{%- set loop_messages = messages[1:] if messages[0]["role"] == "system" else messages %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("conversation roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS][" }}
            {%- for tool in tools %}
                {%- for key, val in tool.function.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val|tojson }}
                    {%- endif %}
                    {{- ", " if not loop.last }}
                {%- endfor %}
            {%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST]" + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {%- for call in message.tool_calls %}
            {%- set out = call.function|tojson %}
            {{- out[:-1] }}
            {%- if not call.id is defined or call.id|length != 9 %}
                {{- raise_exception("tool call ids have nine characters") }}
            {%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- message["content"]|trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS]' + message.content|string + '[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("odd role") }}
    {%- endif %}
{%- endfor %}
"""

MACROS = """\
{% macro part(content, depth=0) %}
    {%- if content is string %}{{ content }}{% elif content is none %}-{% else %}
        {%- for item in content %}{{ depth }}{{ part(item.text, depth=depth + 1) if item.text else item }}{% endfor %}
    {%- endif %}
{%- endmacro %}
{% for message in messages %}
  {% generation %}{{ message.role | upper }}: {{ part(message.content) }}{% endgeneration +%}
{% if loop.index == 3 %}{% break %}{% endif %}
{% else %}
nothing
{% endfor %}
"""

FAMILIES = {"smollm2": SMOLLM2, "llama2": LLAMA2, "llama3": LLAMA3, "qwen3": QWEN3, "mistral": MISTRAL, "macros": MACROS}

SNIPPETS = [
    "", "plain\n", "plain\n\n", "a\r\nb\rc\n", "{{ 'x' }}\n{{ 'y' }}\n", "{% if true %}\nx\n{% endif %}\ny", "  {% if true %}  \n x {% endif %} ",
    "a  {%- if true -%}  b  {%- endif -%}  c", "a\n  {%+ if true +%}\n b{% endif %}", "x {# c #}\n y", "x\n  {# c #}\n y", "x {#- c -#} y",
    "{# {{ x }} #}z", "{{- ' a ' -}} b", "{{ '}}' }}{{ \"%}\" }}", "{{ {'a': {'b': 1}} }}", "{{ {'a': {'b': [1, 'x', \"it's\", none, true, 1.5]}} }}",
    "{{ 'a\\nb\\t\\'\\\"\\\\\\x41\\u00e9\\q' }}", "{{ 'a' 'b' }}", "{{ 1 + 2 * 3 - 4 // 3 % 2 }}", "{{ -7 // 2 }} {{ -7 % 3 }} {{ 7 % -3 }} {{ 7 / 2 }} {{ 4 / 2 }}",
    "{{ 2 ** 10 }} {{ 2 ** -1 }} {{ -2 ** 2 }} {{ 1e3 }} {{ 1.5e-7 }} {{ 123456789012345678.0 }} {{ 0.1 + 0.2 }} {{ 1_000 }}",
    "{{ 1 / 0 }}", "{{ 'a' + 1 }}", "{{ 'a' ~ 1 ~ none ~ true ~ 1.0 }}", "{{ 'ab' * 3 }}", "{{ [1] + [2] }}", "{{ 1 == 1.0 }} {{ true == 1 }} {{ 'a' < 'b' }} {{ [1] == [1] }}",
    "{{ 1 < 'a' }}", "{{ not 1 == 2 }} {{ 1 in [1] and 2 not in [1] }} {{ 'b' in 'abc' }} {{ 'k' in {'k': 1} }}", "{{ 0 or 'x' }} {{ 0 and 'x' }} {{ none or false }}",
    "{{ 'a' if false }}", "{{ 'a' if false else 'b' if false else 'c' }}", "{{ x }}", "{{ x.y }}", "{{ x['y'] }}", "{{ none.y }}", "{{ 'abc'.y is defined }}",
    "{{ x is defined }} {{ x is undefined }} {{ x is none }} {{ none is none }} {{ x == y }} {{ x | length }} {{ x | default('d') }} {{ '' | default('d') }} {{ '' | d('e', true) }}",
    "{{ 1 is number }} {{ true is number }} {{ true is integer }} {{ 1 is integer }} {{ 1.0 is float }} {{ true is boolean }} {{ 'a' is string }} {{ 'a' is iterable }} {{ 1 is iterable }}",
    "{{ {} is mapping }} {{ [] is mapping }} {{ [] is sequence }} {{ {} is iterable }} {{ 3 is odd }} {{ 4 is even }} {{ 9 is divisibleby 3 }} {{ 9 is divisibleby(2) }} {{ 1 is eq 1 }} {{ 1 is in [1, 2] }}",
    "{{ true is true }} {{ 1 is true }} {{ false is false }} {{ 'a' is not string }} {{ 'a' is equalto 'a' }} {{ 2 is gt 1 }} {{ raise_exception is defined }} {{ namespace is callable }}",
    "{{ '  a b ' | trim }}|{{ 'xxaxx' | trim('x') }}|{{ '\\u00a0a\\u3000' | trim }}|{{ 5 | trim }}", "{{ 'äöü日本🙂' | length }} {{ 'äöü日本🙂'[3] }} {{ 'äöü日本🙂'[-1] }} {{ 'äöü日本🙂'[1:4] }} {{ 'abc'[::-1] }}",
    "{{ [1, 2, 3][1:] }} {{ [1, 2, 3][:-1] }} {{ [1, 2, 3][::2] }} {{ [1, 2, 3][5:] }} {{ [1, 2, 3][-2:] }} {{ [1, 2, 3][::-2] }} {{ [1, 2, 3][9] }}", "{{ [1][::0] }}", "{{ 5[1:] }}",
    "{{ [1, 2] | join }} {{ [1, 'a', none] | join(', ') }} {{ 'abc' | join('-') }} {{ [{'a': 1}, {'a': 2}] | join('+', attribute='a') }}",
    "{{ [3, 1, 2] | first }} {{ [3, 1, 2] | last }} {{ [] | first }} {{ [1, 2] | reverse | list }} {{ 'abc' | reverse }} {{ 'abc' | list }}",
    "{{ 'hello World' | upper }} {{ 'Hello' | lower }} {{ 'hello World' | capitalize }} {{ 'ÄÉЯ' | lower }} {{ 'hello wORLD' | title }}",
    "{{ 'aXbXc' | replace('X', '-') }} {{ 'aXbXc' | replace('X', '-', 1) }} {{ 'aXbXc'.replace('X', '') }} {{ 'aa'.replace('a', 'aa') }}",
    "{{ ' a '.strip() }}|{{ ' a '.lstrip() }}|{{ ' a '.rstrip() }}|{{ 'xay'.strip('xy') }}|{{ '\\n\\na\\n'.strip('\\n') }}",
    "{{ 'a,b,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'abc'.split('x') }} {{ ' a b c '.split(none, 1) }} {{ ''.split() }} {{ ''.split(',') }}", "{{ 'a'.split('') }}",
    "{{ 'abc'.startswith('ab') }} {{ 'abc'.endswith('bc') }} {{ 'abc'.startswith(('x', 'a')) }} {{ 'abc'.upper() }} {{ 'ABC'.lower() }} {{ 'a b'.title() }} {{ '-'.join(['a', 'b']) }}",
    "{{ {'a': 1, 'b': 2}.items() | list }} {{ {'a': 1}.keys() | list }} {{ {'a': 1}.values() | list }} {{ {'a': 1}.get('a') }} {{ {'a': 1}.get('b') }} {{ {'a': 1}.get('b', 'c') }}",
    "{{ {'b': 1, 'A': 2, 'c': 3} | dictsort }} {{ {'a': 1} | items | list }}",
    "{{ {'a': [1, 2.5, 'x\"\\n\\u00e9<>&\\'\\x01\\x7f', none, true, {}, []]} | tojson }}", "{{ {'a': [1, {'b': []}], 'c': {}} | tojson(indent=2) }}", "{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}", "{{ 'é' | tojson }}{{ 1.0 | tojson }}",
    "{{ '42' | int + 1 }} {{ '4.7' | int }} {{ 'x' | int }} {{ 'x' | int(7) }} {{ '1.5' | float }} {{ 3.9 | int }} {{ -3 | abs }} {{ 3 | float }} {{ 5 | string + 'a' }}",
    "{{ [1, 2, 3, 4] | select('odd') | list }} {{ [1, 0, 2] | select | list }} {{ [1, 2, 3] | reject('equalto', 2) | list }} {{ ['a', 'B'] | map('upper') | list }} {{ [{'a': 1}, {}] | map(attribute='a', default=9) | list }}",
    "{{ [{'r': 'u', 'n': {'x': 1}}, {'r': 'a'}] | selectattr('r', 'equalto', 'u') | list }} {{ [{'r': 1}, {}] | selectattr('r') | list }} {{ [{'r': 1}, {}] | rejectattr('r', 'defined') | list }}",
    "{% for x in [1, 2, 3] %}{{ loop.index }}/{{ loop.length }}:{{ x }}{{ ',' if not loop.last }}{{ loop.revindex }}{{ loop.revindex0 }}{% endfor %}",
    "{% for x in [1, 2, 3] %}{{ loop.previtem }}<{{ x }}>{{ loop.nextitem }}{{ loop.first }} {% endfor %}", "{% for x in [] %}a{% else %}none{% endfor %}", "{% for x in none %}a{% endfor %}", "{% for x in y %}a{% else %}b{% endfor %}",
    "{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k }}={{ v }};{% endfor %}{% for k in {'a': 1} %}{{ k }}{% endfor %}{% for c in 'é中' %}[{{ c }}]{% endfor %}", "{% for a, b in [[1, 2, 3]] %}{% endfor %}",
    "{% for x in range(10) if x % 2 %}{{ x }}{{ loop.length }} {% endfor %}{{ range(3) | list }}{{ range(2, 8, 3) | list }}{{ range(3, 0, -1) | list }}",
    "{% for x in range(9) %}{% if x == 2 %}{% continue %}{% endif %}{% if x == 5 %}{% break %}{% endif %}{{ x }}{% endfor %}", "{% for i in [1, 2] %}{% for j in [3, 4] %}{{ i * j }}{{ loop.index }} {% endfor %}{{ loop.index }};{% endfor %}",
    "{% set x = 1 %}{% for i in [1, 2] %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}", "{% set ns = namespace(x=1) %}{% for i in [1, 2] %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}", "{% if true %}{% set x = 5 %}{% endif %}{{ x }}",
    "{% set a, b = 1, 2 %}{{ b }}{{ a }}{% set c %}block {{ a }}{% endset %}[{{ c }}]", "{% set x.y = 1 %}", "{% set d = dict(a=1, b='c') %}{{ d.a }}{{ d['b'] }}", "{% set t = (1, 'a',) %}{{ t[0] }}{{ t | length }}{% set e = () %}{{ e | length }}",
    "{% macro m(a, b='B') %}{{ a }}{{ b }}{{ x }}{% endmacro %}{% set x = 7 %}{{ m(1) }} {{ m(1, 2) }} {{ m(b=3, a=4) }} {{ m() }}", "{% macro m(a) %}{{ a }}{% endmacro %}{{ m(1, 2) }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %},{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "{% set x = 1 %}{% macro m() %}{% set x = 2 %}{{ x }}{% endmacro %}{{ m() }}{{ x }}", "{% for i in [1] %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}",
    "{{ raise_exception('no') }}", "{% if x.y %}a{% endif %}", "{{ x() }}", "{{ 'a'.nothing() }}", "{{ namespace(a=1).a }}", "{% if 1 %}a{% elif 2 %}b{% else %}c{% endif %}{% if 0 %}a{% elif 2 %}b{% elif 3 %}d{% else %}c{% endif %}{% if 0 %}a{% else %}c{% endif %}",
    "{{ messages | length }} {{ messages[0].content }} {{ messages[0]['role'] }} {{ messages[-1].role }}", "{{ (1, 2) | join('-') }} {{ [1, 2,] | length }} {{ {'a': 1,} | length }}", "{{ 1 if x is defined and x else 2 }}", "{{ -messages | length }}",
    "{{ 'a' is string and 'b' is string }} {{ not 'a' is string }} {{ ('a' ~ 'b') | upper }} {{ 'a' ~ 'b' | upper }} {{ -3 | abs }} {{ (-3) | abs }}", "{{ [['a', 1], ['b', 2]] | map('first') | join }} {{ [1, 2] | map('string') | join('.') }}",
    # not a template
    "{% if true %}", "{{ 1 +", "{% endif %}", "{{ 'a }}", "{% for x %}{% endfor %}", "{{ a b }}", "{% unknown %}", "{{ x | unknown }}", "{{ x is unknown }}", "{# open", "{{ (1 }}", "{{ ] }}", "{{ a ! b }}", "{% set = 1 %}", "{% break %}",
]


def main():
    cases = []
    for family, template in FAMILIES.items():
        for k, (name, messages) in enumerate(CONVERSATIONS.items()):
            for variables in ({}, {"tools": TOOLS, "enable_thinking": False, "builtin_tools": ["a", "code_interpreter", "b"]}):
                cases.append({"family": family, "messages": messages, "variables": variables,
                              "add_generation_prompt": k % 2 == 0})
    for case in cases:
        case["text"] = render({**case, "template": FAMILIES[case["family"]]})
    snippets = []
    for template in SNIPPETS:
        case = {"template": template, "messages": CONVERSATIONS["system"], "variables": {}, "add_generation_prompt": False}
        snippets.append({"template": template, "text": render(case)})
    (HERE / "data" / "text_chat.json").write_text(json.dumps(
        {"templates": FAMILIES, "cases": cases, "messages": CONVERSATIONS["system"], "snippets": snippets},
        ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    print(len(cases), "cases,", len(snippets), "snippets,", sum(case["text"] is None for case in cases + snippets), "refused")


if __name__ == "__main__":
    main()
