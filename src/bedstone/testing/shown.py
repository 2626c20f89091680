"""Compares what a command prints with what a document shows.

Rules:
- In what is shown `…` is anything, and a space is any number of them.
- Lines may come in any order: which of two parts is ready first differs from run to run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


def pattern(line: str) -> str:
    """A shown line as a regular expression."""
    words = [re.escape(word) for word in re.split(r"\s+|…", line.strip())]
    gaps = re.findall(r"\s+|…", line.strip())
    text = words[0]
    for gap, word in zip(gaps, words[1:], strict=True):
        text += (".*" if gap == "…" else r"\s*") + word
    return text


def missing(shown: Sequence[str], output: str) -> str | None:
    """The first shown line that the output does not have; None if it has all."""
    rest = [line.strip() for line in output.splitlines()]
    for line in shown:
        wanted = line.strip()
        if wanted in {"", "…"}:
            continue
        found = next((entry for entry in rest if re.fullmatch(pattern(wanted), entry)), None)
        if found is None:
            return line
        rest.remove(found)
    return None
