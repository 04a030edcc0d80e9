from __future__ import annotations

from blip_fast.data.emoji.names import Emoji, keywords_of, read_keywords, read_names
from tests.data.emoji.debs import CONTENTS, EMOJI_TEST, KEYWORDS


def test_fully_qualified_names_are_read_with_their_groups() -> None:
    emoji = list(read_names(EMOJI_TEST))
    assert emoji[0] == Emoji("W", "woman", "People & Body", "person")
    assert emoji[1].name == "woman: light skin tone"
    assert "not asked for" not in [one.name for one in emoji]
    assert next(one for one in emoji if one.text == "W\ufe0f").id == "0057-fe0f"
    assert next(one for one in emoji if one.text == "m").caption == "light's tone"


def test_flags_and_abstract_symbols_are_left_out() -> None:
    left_out = [one.name for one in read_names(EMOJI_TEST) if not one.is_picture_of_something]
    assert left_out == ["flag: N", "Leo"]


def test_families_leave_skin_tones_open() -> None:
    def family(name: str) -> str | None:
        return Emoji("x", name, "", "").family

    assert family("woman: medium-dark skin tone, curly hair") == "woman: <T>, curly hair"
    assert family("kiss: person, light skin tone, dark skin tone") == "kiss: person, <T>"
    assert family("handshake: medium skin tone") == "handshake: <T>"
    assert family("woman") is None


def test_keywords_come_from_both_files_or_from_the_name() -> None:
    keywords = read_keywords(CONTENTS[file] for file in KEYWORDS)
    assert keywords == {"W": "adult, lady", "\u0416": "pale, lady"}
    assert keywords_of(Emoji("W\ufe0f", "woman", "", ""), keywords) == "adult, lady"
    assert keywords_of(Emoji("Q", "a queue", "", ""), keywords) == "a queue"
