"""Emoji with their names and keywords, from Unicode's files."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from xml.etree import ElementTree

_SKIN_TONE = re.compile(r"(?:medium-light|medium-dark|light|medium|dark) skin tone")
_TONES = re.compile(r"(<T>, )+<T>")
_NAME = re.compile(r"^.*?# \S+ E\d+\.\d+ ")
_PLAIN_QUOTES = str.maketrans({"\u2019": "'", "\u201c": '"', "\u201d": '"'})
_VARIATION = "\ufe0f"  # asks for the coloured form of a character
_CONCRETE_SYMBOLS = {"arrow", "geometric", "keycap", "math", "av-symbol", "transport-sign", "warning"}


@dataclasses.dataclass(frozen=True)
class Emoji:
    """One emoji: its characters, its name, and where Unicode files it."""

    text: str
    name: str
    group: str
    subgroup: str

    @property
    def id(self) -> str:
        """Its code points, such as 1f44d-1f3fd."""
        return "-".join(f"{ord(character):04x}" for character in self.text)

    @property
    def caption(self) -> str:
        """Its name with plain quotes."""
        return self.name.translate(_PLAIN_QUOTES)

    @property
    def family(self) -> str | None:
        """Its name with skin tones left open, one for all of several persons; None for an emoji without any."""
        family, tones = _SKIN_TONE.subn("<T>", self.name)
        return _TONES.sub("<T>", family) if tones else None

    @property
    def is_picture_of_something(self) -> bool:
        """Not so for flags and abstract symbols, whose names nobody could guess from the picture."""
        return self.group != "Flags" and (self.group != "Symbols" or self.subgroup in _CONCRETE_SYMBOLS)


def read_names(emoji_test: str) -> Iterator[Emoji]:
    """The fully qualified emoji of Unicode's ``emoji-test.txt``, in its order."""
    group = subgroup = ""
    for line in emoji_test.splitlines():
        if line.startswith("# group:"):
            group = line.removeprefix("# group:").strip()
        elif line.startswith("# subgroup:"):
            subgroup = line.removeprefix("# subgroup:").strip()
        elif "; fully-qualified" in line:
            text = "".join(chr(int(code, 16)) for code in line.split(";")[0].split())
            yield Emoji(text, _NAME.sub("", line).strip(), group, subgroup)


def read_keywords(annotations: Iterable[bytes]) -> dict[str, str]:
    """The keywords of each emoji, joined by commas, from CLDR's annotation files; see :func:`keywords_of`."""
    keywords = {}
    for content in annotations:
        for entry in ElementTree.fromstring(content).iter("annotation"):
            if entry.get("type") != "tts":
                words = [word.strip() for word in (entry.text or "").split("|")]
                keywords[entry.get("cp", "").replace(_VARIATION, "")] = ", ".join(words)
    return keywords


def keywords_of(emoji: Emoji, keywords: dict[str, str]) -> str:
    """The keywords of an emoji, or its name where it has none."""
    return keywords.get(emoji.text.replace(_VARIATION, ""), emoji.name)
