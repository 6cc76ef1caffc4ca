"""Text that split patterns and merges stumble on: all scripts, whitespace, emoji, controls."""

# ruff: noqa: RUF001

from __future__ import annotations

import unicodedata

import numpy as np

from . import vocabulary


def nasty_text(rng: np.random.Generator, *, size: int, old_only: bool = False) -> str:
    """About `size` characters of everything that split patterns and merges stumble on.

    `old_only` leaves out what Unicode 3.2 had not assigned: of later characters, regex engines of
    different age disagree on what is a letter.
    """
    fixed = (
        " ", "  ", "   ", "\n", "\r\n", "\n\n", "\r", "\t", " \n ", "\t \r\n", "\xa0", "\u3000",
        "\u2028", "\x85", "\x1c", "\x00", "\x7f", "\ufeff", "\u200b", "\u200d", "\ufffd", "/", "//",
        "'s", "'S", "'ll", "'LL", "'re", "'ſ", "’s", "don't", "DON'T", "they'Ve", "'d've", "''s",
        "0", "12", "123", "1234", "٣٤", "²", "Ⅷ", "½", "१२३४", "a", "A", "aB", "ABc", "Ab", "ß",
        "e\u0301", "\u0301", "ǅ", "ʰ", "ª", "中文", "日本語", "한국어", "हिन्दी", "ไทย", "עברית",
        "عربى",
        "!", "?!", "...", "---", "==", "!\n", "!\r\n/\n", "({[", "</p>", "\\n", "#include <a.h>\n",
        "def f(x):\n    return x\n", "https://a.b/c?d=e", "<|end|>", "<|start|>user<|message|>",
        "<|reserved_200013|>", "<|endoftext|", "|>", "<|", " the", " question", "The", "THE",
    )  # fmt: skip
    emoji = ("😀", "👨‍👩‍👧‍👦", "🏳️‍🌈", "🇩🇪", "👍🏽", "❤️", "1️⃣", "☎")
    choices: list[str] = []
    length = 0
    while length < size:
        kind = rng.integers(7)
        if kind < 3:
            piece = str(rng.choice(fixed))
        elif kind == 3 and not old_only:
            piece = emoji[rng.integers(len(emoji))]
        elif kind == 4:
            piece = str(rng.choice((" ", "\n", "\t", "a", "=", "7", "\r\n"))) * int(
                rng.integers(40)
            )
        elif kind == 5:
            begin = int(rng.integers(len(vocabulary.CORPUS)))
            piece = vocabulary.CORPUS[begin : begin + int(rng.integers(60))]
        else:
            block = int(
                rng.choice((0, 0x100, 0x370, 0x900, 0x2000, 0x3000, 0x4E00, 0xAC00, 0x1F300))
            )
            if rng.random() < 0.3:
                block = int(rng.integers(0x110000 - 256))
            codes = block + rng.integers(256, size=rng.integers(1, 8))
            piece = "".join(chr(code) for code in codes if not 0xD800 <= code < 0xE000)
        if old_only:
            piece = "".join(c for c in piece if unicodedata.ucd_3_2_0.category(c) != "Cn")
        choices.append(piece)
        length += len(piece)
    return "".join(choices)
