# SPDX-License-Identifier: Apache-2.0
"""Lines of mixed text for the tokenizer tests: code, digits, many scripts, emoji, combining marks, white space,
special tokens, and characters drawn from all of Unicode. The same lines every time."""
import random
import unicodedata

SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "I'm sure they'll say it's fine; we've seen it, haven't you? HE'LL SHOUT, SHE'D'VE WON'T'VE.",
    "Don't panic: 3.14159 is not 22/7, and 1,000,000.00 != 1e6.",
    "Über die Brücke gingen größere Füchse, naïve façades, Ångström, piñata, œuvre, Łódź, İstanbul, ılık, ǅ ǆ.",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. Україна, Ґанок, Ўзбек.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. ὈΔΥΣΣΕΎΣ ΌΣΟΣ ἄνδρα μοι ἔννεπε",
    "私は昨日、東京タワーに行きました。カタカナ ｶﾀｶﾅ がぎぐ ー、。",
    "我能吞下玻璃而不伤身体。繁體中文，𠀀𠮷𪚥 與 㐀㐁。",
    "다람쥐 헌 쳇바퀴에 타고파. 각 ᄀᆞᆨ 힣",
    "نص حكيم له سر قاطع وذو شأن عظيم ١٢٣٤ ۱۲۳",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה שָׁלוֹם",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण १२३ க்ஷ ஸ்ரீ",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์ ๑๒๓",
    "Tiếng Việt: Con sói nâu nhảy qua con chó lười. ế ễ ặ ậ",
    "👩‍👩‍👧‍👦 👍🏽 🇺🇸🇩🇪 ❤️‍🔥 🏴󠁧󠁢󠁥󠁮󠁧󠁿 1️⃣ 😀😁🤣 ☺︎ ♥️ 🫠",
    "e\u0301 a\u0308\u0323 o\u0302\u0301 \u1e9b\u0323 q\u0307\u0323 \u0344 \u212b \u2126 \ufb01 ﬀ ½ ² Ⅷ ① ㎏",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘!͖̬̰̙̗̿̋ͥͥ̂ͣ̐́́͜͞",
    "𝕳𝖊𝖑𝖑𝖔 𝒲ℴ𝓇𝓁𝒹 ＦＵＬＬ　ＷＩＤＴＨ １２３ ﷽ ꙮ 𐍈 𓀀",
    "x² + y² = z², ∀ε>0 ∃δ: |f(x)−f(a)|<ε, ∑ᵢ αᵢ ≤ ∞, 5×10⁻³ ± 2%, €9.99 £1 ¥100 ₹5",
    "“Curly” ‘quotes’ — dashes – and… «guillemets» ‚low‘ „quotes“ ¿qué? ¡olé! · • ‣ †",
    "https://example.org/a/b?c=d&e=f#g user.name+tag@mail.example.com C:\\Users\\x\\y.txt ~/.ssh/id /etc/fstab",
    "{\"key\": [1, 2.5, -3e-7, null, true], \"nested\": {\"a\": \"b\\n\\u00e9\"}}",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "Pneumonoultramicroscopicsilicovolcanoconiosis antidisestablishmentarianism " + "supercali" * 15,
    "__init__ snake_case camelCase PascalCase SCREAMING_CASE kebab-case $var @decorator #hashtag a.b->c::d",
    "12345678901234567890 007 3.0.0-rc.1+build.5 0xDEADBEEF 0b1010 1_000 50% 10:30 2024-02-29T12:00:00Z",
    "???!!!...,,,;;;:::---___***///\\\\\\((([[[{{{<<<>>>}}}]]]))) ~~~ ``` '''quoted''' \"\"\"doc\"\"\"",
    "'s 't 're 've 'm 'll 'd 'S 'T 'RE 'VE 'M 'LL 'D 'ſ ’s ’t s't's'll'd x'X",
    "don’t can´t rock'n'roll o'clock 'tis '90s l'été d'Artagnan",
]

CODE = [
    "def f(x: int) -> int:\n    \"\"\"Doc.\"\"\"\n    return x ** 2 if x else -1  # comment\n\n\nclass A(B):\n\tpass\n",
    "for (int i = 0; i < n; ++i) {\r\n\t\tsum += a[i] * b[i];\r\n\t}\r\n\r\n}",
    "#include <vector>\ntemplate <class T>\nauto g(T&& t) noexcept(noexcept(t())) -> decltype(t()) { return t(); }",
    "SELECT a.id, COUNT(*) FROM t AS a LEFT JOIN u ON u.id = a.id WHERE a.x >= 10 GROUP BY 1;",
    "<div class=\"x\">&nbsp;<a href='#'>link</a></div><!-- c -->\n<br/>\n",
    "let v: Vec<_> = xs.iter().map(|x| x * 2).filter(|&x| x != 0).collect::<Vec<i32>>();",
    "$ ls -la | grep '^d' | awk '{print $9}' > out.txt 2>&1 && echo \"done\"\n",
    "\\begin{equation}\n  E = mc^2 \\label{eq:e}\n\\end{equation}",
    "if a:\n        if b:\n                return\n    \n  \n\n",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\n- [ ] todo\n  * item\n1. one\n",
]

SPACES = [" ", "  ", "   ", "    ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", "\r", " \n", "\n ", " \t ", "\u00a0", "\u3000",
          "\u2003", "\u200b", "\u180e", "\u2028", "\x0b", "\x0c", "\x85", "\u205f", "\ufeff", "        ", " \n \n  \n",
          "\u202f", "\u1680", " " * 37]


def random_characters(rng, count):
    """Assigned characters from everywhere, the control characters and private use included."""
    out = []
    while len(out) < count:
        ceiling = rng.choice([0x80, 0x250, 0x800, 0x3000, 0x10000, 0x20000, 0x110000])
        code = rng.randrange(ceiling)
        if 0xD800 <= code < 0xE000 or unicodedata.category(chr(code)) == "Cn":
            continue
        out.append(chr(code))
    return "".join(out)


def mixed_lines(count, special_tokens=(), seed=7):
    """`count` texts (a text may contain line breaks); the fixed ones first, then random mixtures of them."""
    rng = random.Random(seed)
    lines = ["", " ", "  ", "\n", "a", " a", "a ", "\u00e9", "\u0301", "0", "\x00", "\ufffd", "\U0010ffff", "\U0001f600"]
    lines += SENTENCES + CODE + SPACES
    for token in special_tokens:
        lines += [token, token + token, " " + token + " ", "a" + token + "b", "x \n " + token + " \n y", token[:-1], token[1:]]
    words = " ".join(SENTENCES).split(" ")
    while len(lines) < count:
        parts = []
        for _ in range(rng.randrange(1, 9)):
            kind = rng.randrange(12)
            if kind < 4:
                start = rng.randrange(len(words))
                parts.append(" ".join(words[start:start + rng.randrange(1, 8)]))
            elif kind < 6:
                text = rng.choice(CODE + SENTENCES)
                start = rng.randrange(len(text))
                parts.append(text[start:start + rng.randrange(1, 40)])
            elif kind < 8:
                parts.append(rng.choice(SPACES) * rng.randrange(1, 4))
            elif kind == 8:
                parts.append(str(rng.randrange(10 ** rng.randrange(1, 15))))
            elif kind == 9:
                parts.append(random_characters(rng, rng.randrange(1, 8)))
            elif kind == 10:
                parts.append(rng.choice("abcdefgZ.,'!éß中の한🙂\u0301") * rng.randrange(1, 30))
            elif special_tokens:
                parts.append(rng.choice(list(special_tokens)))
            if rng.randrange(3) == 0:
                parts.append(" ")
        lines.append("".join(parts))
    return lines[:count]
