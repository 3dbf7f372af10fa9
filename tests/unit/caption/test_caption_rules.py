"""Any text becomes a caption of one line, or is rejected with a reason."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.caption.caption_rules import captions_of, check
from components.caption.config import CaptionConfig
from components.errors import ConfigError, ImageRejected
from components.image.caption_text import decode_caption


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"a cat\n", "a cat"),
        (b"\xef\xbb\xbfa cat", "a cat"),
        (b"  a\r\n\tcat \x00\x1b[31m sat ", "a cat [31m sat"),
        ("a café".encode("utf-16"), "a café"),
        (b"\xfe\xff" + "a café".encode("utf-16-be"), "a café"),
        ("a café".encode("utf-32"), "a café"),
        ("日本 📷 naïve\u2028line".encode(), "日本 📷 naïve line"),
        (b'<script>alert(1)</script> & "it\'s"', '<script>alert(1)</script> & "it\'s"'),
    ],
)
def test_a_caption_is_one_line_and_otherwise_as_it_was_written(data: bytes, expected: str) -> None:
    assert captions_of(decode_caption(data), CaptionConfig(max_characters=100)) == [expected]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "caption-empty"),
        (b" \n\t\0 ", "caption-empty"),
        (b"\xef\xbb\xbf", "caption-empty"),
        (b"caf\xe9", "caption-not-utf8"),
        ("a cat".encode("utf-16-le"), "caption-not-utf8"),
        ("a cat".encode("utf-16") + b"!", "caption-not-utf8"),
        (b"\xed\xb3\xbf", "caption-not-utf8"),
        (b"x" * 101, "caption-too-long"),
    ],
)
def test_a_caption_that_cannot_be_used_has_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(ImageRejected) as caught:
        captions_of(decode_caption(data), CaptionConfig(max_characters=100))
    assert caught.value.reason == reason


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "", "hex"])
def test_an_unknown_encoding_is_rejected(encoding: str) -> None:
    with pytest.raises(ConfigError, match="encoding"):
        CaptionConfig.parse({"encoding": encoding})


@given(st.text(max_size=200))
def test_any_text_becomes_one_line_or_is_rejected(text: str) -> None:
    try:
        line = check(text, CaptionConfig(max_characters=50))
    except ImageRejected:
        return
    assert 0 < len(line) <= 50
    assert line == line.strip()
    assert not any(unicodedata.category(letter) == "Cc" for letter in line)
    assert check(line, CaptionConfig(max_characters=50)) == line
