"""Names of classes, files and runs are shown as they are, wherever they stand in Markdown."""

from __future__ import annotations

import html
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from headstart.evaluation.formatting import Table, escape_markdown, link, markdown_table

RENDER = MarkdownIt("commonmark").enable(["table", "strikethrough"]).render
NAMES = st.text("ab1 .)(<>&|@$`*_#~[]!\\\"'-+=:/\n\r\t{}^é\u2028", min_size=1, max_size=12).filter(str.strip)


def shown(markdown: str) -> tuple[str, set[str]]:
    """The text that a page shows, on one line, and the elements that it is made of."""
    page = RENDER(markdown)
    text = html.unescape(re.sub(r"</?(?:p|strong|code|summary|details)>", "", page))
    return " ".join(re.sub(r"</?(?:table|thead|tbody|tr|th|td)>", " ", text).split()), set(re.findall(r"<(\w+)", page))


@settings(max_examples=300, deadline=None)
@given(NAMES)
def test_no_name_means_anything_in_markdown(name):
    flat, escaped = " ".join(name.split()), escape_markdown(name)
    for sentence, plain in (
        ("Classes: {0}, {0}.", "Classes: {0}, {0}."),
        ("**{0} is better** than {0}", "{0} is better than {0}"),
        ("| a |\n| --- |\n| {0} |", "a {0}"),
    ):
        text, elements = shown(sentence.format(escaped))
        assert text == plain.format(flat)
        assert elements <= {"p", "strong", "table", "thead", "tbody", "tr", "th", "td"}
    # The name may hold backticks: they make code at most.
    assert shown(escape_markdown(f"Run `dvc repro` for {name}", keep_code=True))[1] <= {"p", "code"}


@pytest.mark.parametrize("name", ["```", "x\n```\n# y", "x\r</details>", "| --- |", "<!-- x"])
def test_no_name_ends_a_table(name):
    made = markdown_table(Table("Classes", ["class", "examples"], [[name, "1"], ["cat", "2"]]), folded=False)
    text, elements = shown(made)
    assert text == f"Classes class examples {' '.join(name.split())} 1 cat 2"
    assert elements == {"p", "strong", "table", "thead", "tbody", "tr", "th", "td"}


@pytest.mark.parametrize("address", ["https://example.org/1", "https://example.org/a b)<img src=x>](javascript:x"])
def test_an_address_stays_one_link(address):
    page = RENDER(link("This [run](x)", address))
    assert re.fullmatch(r'<p><a href="https://example\.org/[^"<> ]*">This \[run\]\(x\)</a></p>\n', page)
