"""What a template, a line of Markdown or a terminal shows of hostile text: all of it, and none of it acts."""

from __future__ import annotations

import sys
import unicodedata
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from components.html.formatting import in_markdown, one_line, printable
from components.html.templates import environment

REORDERING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
MARKS = {"LEFT-TO-RIGHT MARK", "RIGHT-TO-LEFT MARK", "ARABIC LETTER MARK"}
EVIL = "<b>&\"' \x1b[31m\x00\x07\x7f\x9b \u202eexe.jpg\u2066 a\u2028b\u2029c\x85d \udcff é 🙂"
SHOWN = "\\x1b[31m\\x00\\x07\\x7f\\x9b \\u202eexe.jpg\\u2066 a\\u2028b\\u2029c\\x85d \\udcff é 🙂"


def acts(character: str) -> bool:
    """Tell from what Unicode says of a character whether it controls something, or splits or reorders lines."""
    return (
        unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(character) in REORDERING
        or unicodedata.name(character, "") in MARKS
    )


def rendered(tmp_path: Path, template: str, **values: object) -> str:
    (tmp_path / "page.html").write_text(template, "utf-8")
    return environment(tmp_path).get_template("page.html").render(values)


def test_of_all_of_unicode_only_what_acts_is_shown_as_an_escape() -> None:
    wrong = []
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        expected = character
        if acts(character) and character not in "\n\t":
            expected = f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
        if printable(character) != expected:
            wrong.append(f"{code:x}")
    assert wrong == []


def test_one_line_is_one_line() -> None:
    assert one_line("a\r\n\tb\x0b\x0c\x1cc\u2028d") == "a\\x0d\\n\\tb\\x0b\\x0c\\x1cc\\u2028d"
    assert one_line(EVIL).splitlines() == [one_line(EVIL)]


@pytest.mark.parametrize(
    "template",
    [
        "<p>{{ text }}</p>",
        '<p title="{{ text }}">',
        "{% for one in [text] %}<p>{{ one }}</p>{% endfor %}",
        "<p>{{ text | upper | lower }}</p>",
        "{% set name = text %}<p>{{ name }}</p>",
        "<p>{{ '' ~ text }}</p>",
        "{% macro say(it) %}<p>{{ it }}</p>{% endmacro %}{{ say(text) }}",
        "<p>{{ text | one_line }}</p>",
    ],
)
def test_a_template_shows_hostile_text_and_it_does_nothing(tmp_path: Path, template: str) -> None:
    page = rendered(tmp_path, template, text=EVIL)
    assert SHOWN in page
    assert "&lt;b&gt;&amp;&#34;&#39;" in page
    assert not any(map(acts, page))
    page.encode()


def test_only_what_is_markup_already_stays_markup(tmp_path: Path) -> None:
    drawing = Markup("<svg>\n</svg>")
    assert rendered(tmp_path, "{{ drawing }} {{ 7 }} {{ text }}", drawing=drawing, text="<svg>") == (
        "<svg>\n</svg> 7 &lt;svg&gt;"
    )


def test_a_name_that_nobody_gave_fails_rather_than_leaving_a_gap(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError, match="caption"):
        rendered(tmp_path, "{{ caption }}")


def test_markdown_reads_hostile_text_as_nothing_but_text() -> None:
    text = in_markdown(EVIL + "\n# [a](javascript:b) ![c](d) `e` *f* _g_ ~h~ | i")
    assert not any(map(acts, text))
    assert text == (
        "&lt;b&gt;&amp;\"' \\\\x1b\\[31m\\\\x00\\\\x07\\\\x7f\\\\x9b \\\\u202eexe.jpg\\\\u2066 "
        "a\\\\u2028b\\\\u2029c\\\\x85d \\\\udcff é 🙂"
        "\\\\n\\# \\[a\\]\\(javascript:b\\) \\!\\[c\\]\\(d\\) \\`e\\` \\*f\\* \\_g\\_ \\~h\\~ \\| i"
    )
