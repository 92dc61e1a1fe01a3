"""Sentences that can be said in another language: text that remembers what it was made of."""

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Final

_MOST: Final = 300  # letters of somebody's words
_UNSEEN: Final = {"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"}


class Said(str):
    """A sentence, its template (the text that translators know), and the values in it, which may be sentences."""

    __slots__ = ("template", "values")

    template: str
    values: Mapping[str, object]

    def by(self, translate: Callable[[str], str]) -> str:
        """Return it with its template, and those of the sentences in it, translated."""
        values = {name: one.by(translate) if isinstance(one, Said) else one for name, one in self.values.items()}
        return translate(self.template).format(**values)


def said(template: str, /, **values: object) -> Said:
    """Return a sentence of a template."""
    sentence = Said(template.format(**values))
    sentence.template, sentence.values = template, values
    return sentence


def joined(separator: str, parts: Iterable[object]) -> Said:
    """Return sentences as one."""
    values = {f"part{number}": part for number, part in enumerate(parts)}
    return said(separator.join(f"{{{name}}}" for name in values), **values)


def quoted(text: str) -> str:
    """Return somebody's own words, not to be taken for ours: in quotes, of visible letters, not too long."""
    shown = visible(text, _MOST).replace("“", "'").replace("”", "'")
    return f"“{shown}”"


def visible(text: str, most: int) -> str:
    """Return a text without letters that are not seen or turn others around, and at most so long."""
    kept = "".join(" " if c.isspace() else c for c in text if c.isspace() or unicodedata.category(c) not in _UNSEEN)
    kept = " ".join(kept.split())
    return kept if len(kept) <= most else f"{kept[:most]}…"


def in_words(value: object, translate: Callable[[str], str]) -> str:
    """Return a value as text; a sentence is translated."""
    return value.by(translate) if isinstance(value, Said) else str(value)
