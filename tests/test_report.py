"""The data page, which is made after prepare alone, as a browser sees it."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import SMALL, paint, run_stages, write_params
from PIL import Image

from headstart import paths
from headstart.config import load_params
from headstart.report import data_page, pages
from headstart.report.pages import make_pages

EVIL = "<img src=x onerror=\"document.title='owned'\">"


def picture(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """An image unlike that of any other number."""
    cells = np.random.default_rng(number).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return Image.fromarray(cells).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Iterator[Path]:
    """A folder after prepare, with malicious names, copies, and files that cannot be used; to be read only."""
    root = tmp_path_factory.mktemp("prepared")
    for number in range(8):
        for label in ("cat", EVIL.replace("/", "")):
            file = root / "set" / label / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encode(picture(number + 50 * len(label)), "PNG"))
    image, cats = picture(0, (200, 150)), root / "set" / "cat"
    (cats / "copy a.jpg").write_bytes(encode(image, "JPEG", quality=90))
    (cats / "copy b.jpg").write_bytes(encode(image.resize((100, 75)), "JPEG", quality=60))
    (cats / f"{EVIL}.jpg").write_bytes(b"no image")
    (cats / "<script>document.title='owned'<\\script>.png").write_bytes(b"")
    paint(cats / "wide.png", (9, 9, 9), 5, (900, 20))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("DVC_ROOT", raising=False)
        changes = {"data.source": "set", "prepare.near_distance": 0.25, "prepare.max_bad_fraction": 0.5}
        changes["prepare.split"] = "exact"
        write_params(Path("params.yaml"), **{**SMALL, **changes})
        run_stages("prepare")
    return root


@pytest.fixture
def here(prepared, monkeypatch) -> Path:
    monkeypatch.chdir(prepared)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return prepared


def test_it_is_made_after_prepare_alone_and_again_if_something_changed(here, capsys):
    make_pages()
    skipped = f"report: skipped {paths.RESULTS_PAGE}: {paths.report('evaluate')} does not exist; run `dvc repro`"
    assert capsys.readouterr().out.startswith(f"report: {paths.DATA_PAGE}\n{skipped}")
    before = paths.DATA_PAGE.read_bytes()
    make_pages()
    assert paths.DATA_PAGE.read_bytes() == before  # equal data, equal page
    capsys.readouterr()
    make_pages(if_stale=True)
    assert str(paths.DATA_PAGE) not in capsys.readouterr().out
    params, page = load_params(), pages.PAGES[0]
    head = params.model_copy(update={"train_head": params.train_head.model_copy(update={"epochs": 7})})
    assert page.fingerprint(head, []) == page.fingerprint(params, [])  # it shows params of prepare alone
    assert page.fingerprint(params.model_copy(update={"seed": 7}), []) != page.fingerprint(params, [])


def test_it_is_one_file_that_loads_nothing(here):
    text = data_page.render_data_page(load_params(), ["<b>a remark</b>"], "0")
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", text)
    assert "<script" not in text
    assert "url(" not in text
    assert "default-src 'none'" in text
    assert EVIL not in text
    assert "&lt;img src=x onerror=" in text
    assert "&lt;b&gt;a remark" in text


def test_without_the_source_it_has_no_pictures_and_says_so(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared / "data", tmp_path / "data")
    shutil.copytree(prepared / "reports", tmp_path / "reports")
    shutil.copy(prepared / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    text = data_page.render_data_page(load_params(), [], "0")
    assert "The page has no pictures: params.yaml: data.source &#39;set&#39; does not exist" in text
    assert "data:image" not in text


def test_thousands_of_classes_make_a_page_of_some_megabytes(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared / "data", tmp_path / "data")
    shutil.copytree(prepared / "reports", tmp_path / "reports")
    shutil.copy(prepared / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    names = [f"class {number:04}" for number in range(5000)]
    rows = pd.read_parquet(paths.FILES).query("reason == ''").iloc[[0] * 15000]
    many = rows.assign(label=np.repeat(names, 3), split=["train", "val", "test"] * 5000, copies=range(15000))
    many.reset_index(drop=True).to_parquet(paths.FILES)
    paths.CLASSES.write_text(str(names).replace("'", '"'))
    text = data_page.render_data_page(load_params(), [], "0")
    assert len(text) < 2_000_000
    assert "4,000 more classes, between the 500 largest and the 500 smallest" in text
    assert text.count('<td class="name">class ') == 1000


def test_a_browser_shows_it(here, shown):
    """Every thumbnail is drawn, nothing is fetched, no name acts."""
    make_pages()
    tab, requests, errors = shown(paths.DATA_PAGE)
    assert errors == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert tab.title() == "Data: 19 examples of 2 classes"
    widths = tab.evaluate("[...document.images].map(i => i.naturalWidth)")
    assert len(widths) > 19
    assert min(widths) > 0
    names = tab.locator("table").first.locator("td.name").all_inner_texts()
    assert sorted(names) == sorted(["cat", EVIL.replace("/", "")])
    copies = tab.locator(".group").all()
    assert [len(group.locator("figure").all()) for group in copies] == [2]
    assert "wide 1" in tab.locator("#outliers ~ h3").all_inner_texts()
    assert tab.locator(".chart svg").count() == 4
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
