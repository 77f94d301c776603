"""The page about the data, as a browser sees it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import paint
from test_corpus import encoded, picture
from test_corpus import run as run  # a fixture

from headstart import paths

EVIL = "<img src=x onerror=\"document.title='owned'\">"


@pytest.fixture
def page(run, tmp_path) -> Path:
    """The page about photos under evil names, with copies, and with files that cannot be used."""
    root = tmp_path / "set"
    for number in range(8):
        for label in ("cat", EVIL.replace("/", "")):
            file = root / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(picture(number + 50 * len(label)), "PNG"))
    image = picture(0, (200, 150))
    (root / "cat" / "copy a.jpg").write_bytes(encoded(image, "JPEG", quality=90))
    (root / "cat" / "copy b.jpg").write_bytes(encoded(image.resize((100, 75)), "JPEG", quality=60))
    (root / "cat" / f"{EVIL}.jpg").write_bytes(b"no image")
    (root / "cat" / "<script>document.title='owned'</script>.png".replace("/", "")).write_bytes(b"")
    paint(root / "cat" / "wide.png", (9, 9, 9), 5, (900, 20))
    run(root)
    return paths.DATA_PAGE.resolve()


def test_the_page_is_one_file_that_asks_for_nothing(page):
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", text)
    assert "<script" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert EVIL not in text
    assert "&lt;img src=x onerror=" in text


def test_equal_data_give_an_equal_page(page, run, tmp_path):
    before = page.read_bytes()
    run(tmp_path / "set")
    assert page.read_bytes() == before


def test_a_browser_shows_it(page, shown):
    """Every thumbnail is drawn, nothing is fetched, no name acts."""
    tab, requests, errors = shown(page)
    assert errors == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert tab.title() == "Data: 19 images of 2 classes"
    widths = tab.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert len(widths) > 19
    assert min(widths) > 0
    names = tab.locator("table").first.locator("td.name").all_inner_texts()
    assert sorted(names) == sorted(["cat", EVIL])
    copies = tab.locator(".group").all()
    assert [len(group.locator("figure").all()) for group in copies] == [2]
    assert "wide 1" in tab.locator("#outliers ~ h3").all_inner_texts()
    assert "a name that" not in tab.inner_text("body")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
