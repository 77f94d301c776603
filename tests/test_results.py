"""The results page, as a team and a browser see it."""

from __future__ import annotations

import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import recorded
import yaml
from conftest import ROOT, SMALL, write_params
from PIL import Image

from headstart import costs, paths, provenance
from headstart.backbones import get_backbone
from headstart.backbones.base import POOL_LAYER
from headstart.config import load_params
from headstart.data.files import file_hash
from headstart.data.predictions import prediction_table
from headstart.errors import UserError
from headstart.evaluation.metrics import Predictions
from headstart.evaluation.paired import PairedPredictions
from headstart.framework import keras
from headstart.lockfile import Workspace
from headstart.modalities import get_modality
from headstart.outputs import Outputs
from headstart.report import attention, charts, confusions, findings, origin, pages, results_page
from headstart.report.pages import make_pages
from headstart.training import networks
from headstart.training.selection import explain

EVIL = "<img src=x onerror=\"document.title='owned'\">"
CLASSES = ["ant", "bee", "cow", "dog"]
TUNED = {  # reports/fine_tune.json
    "settings": {"epochs": 3, "crop": 0.5},
    "selected": "fine_tuned",
    "reason": "on val it has a lower log loss; refitted on train + val",
    **{"head_val_loss": 0.5, "head_val_accuracy": 0.8, "tuned_val_loss": 0.25, "tuned_val_accuracy": 0.9},
    **{"head_brier_score": 0.2, "tuned_brier_score": 0.1, "tuned_confidence": 0.987},
    **{"last_epoch": 3, "finished": True, "gave_up": False, "folds_trained": 0, "refitted": True},
}
HEAD_ONLY = {"selected": "head", "reason": "fine_tune.unfreeze leaves nothing to train", "head_val_loss": 0.5}


def make_predictions(classes: int, examples: int, accuracy: float, seed: int = 0) -> Predictions:
    """Predictions for as many examples of each class; a wrong one names one of two other classes."""
    random = np.random.default_rng(seed)
    targets = np.repeat(np.arange(classes), examples)
    wrong = random.random(len(targets)) > accuracy
    others = np.where(random.random(len(targets)) < 0.6, targets ^ 1, targets + 2) % classes
    answers = np.where(wrong, others, targets)
    probabilities = random.random((len(targets), classes)) * 0.02 / classes
    probabilities[np.arange(len(targets)), answers] += random.uniform(0.6, 1, len(targets))
    return Predictions(targets, probabilities / probabilities.sum(axis=1, keepdims=True), 3)


def make_results(
    root: Path, classes: list[str], examples: int = 20, accuracy: float = 0.9, fine_tune: dict | None = None
) -> None:
    """Write what the stages leave into `root`, the current folder, for made-up predictions on small images."""
    shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos"})
    final = make_predictions(len(classes), examples, accuracy)
    head = make_predictions(len(classes), examples, accuracy - 0.1, seed=1)
    rows = []
    for place, target in enumerate(final.targets):
        file = Path("photos", classes[target], f"{place}.png")
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 16), (40 * target % 256, place % 256, 90)).save(file)
        path = file.relative_to("photos").as_posix()
        rows.append((path, f"{place:032x}", classes[target], file_hash(file.read_bytes()), "test"))
    manifest = pd.DataFrame(rows, columns=["path", "item_id", "label", "file_hash", "split"])
    manifest = manifest.assign(given=False, group=None, connected=manifest.item_id)
    paths.MANIFEST.parent.mkdir(parents=True)
    manifest.to_parquet(paths.MANIFEST)
    paths.READING.write_text('{"kind": "image"}')

    outputs, count = Outputs(), len(manifest)
    summaries = {name: side.summary(classes, 100, 0) for name, side in (("final", final), ("head", head))}
    evaluation = {
        **summaries,
        "gain": PairedPredictions(head, final).summary(100, 0),
        "examples": count,
        "model_mb": 12.5,
    }
    outputs.json(paths.report("evaluate"), evaluation)
    files = {"seen": 9 * count + 3, "accepted": 9 * count, "quarantined": 3, "ignored": 0}
    splits = {"train": 7 * count, "val": count, "test": count}
    outputs.json(
        paths.report("prepare"), {"examples": splits, "classes": len(classes), "imbalance": 1.5, "files": files}
    )
    settings = {"hidden": [], "dropout": 0.0, "optimizer": "lbfgs", "activation": "relu"}  # the last as in params.yaml
    outputs.json(paths.report("train_head"), {"settings": settings, "best_epoch": 2})
    outputs.json(paths.report("fine_tune"), fine_tune or TUNED)
    epochs = np.arange(1, 4)
    curves = {"epoch": epochs, "loss": 1 / epochs, "accuracy": 1 - 0.3 / epochs, "val_loss": 1.2 / epochs}
    for stage in ("train_head", "fine_tune"):
        outputs.csv(paths.curves(stage), pd.DataFrame({**curves, "val_accuracy": 1 - 0.4 / epochs}))
    outputs.csv(paths.RELIABILITY, final.reliability())
    for file, table in zip((paths.PRECISION_RECALL, paths.ROC), final.curves(), strict=True):
        outputs.csv(file, table)
    outputs.csv(paths.PREDICTIONS, prediction_table(manifest, classes, final.probabilities))
    outputs.commit()
    costs.write("prepare", {"prepare_seconds": 2.5})
    costs.write("evaluate", {"evaluate_seconds": 77.5, "latency_ms": 12.25})


def save_model(file: Path, classes: int) -> None:
    """A classifier of images of 32 pixels."""
    encoder = get_backbone("tiny").build("none", 32, "avg", 0)
    network = networks.join(get_modality("image").front(32), encoder, networks.build_head(1280, classes, []))
    file.parent.mkdir(parents=True)
    networks.save(network, file, [f"class {number}" for number in range(classes)], modality="image", size=32)


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Makes the results of `make_results` in a new folder, and goes there."""

    def make(classes: list[str], **options) -> Path:
        monkeypatch.chdir(tmp_path)
        monkeypatch.delenv("DVC_ROOT", raising=False)
        make_results(tmp_path, classes, **options)
        return tmp_path

    return make


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Path]:
    """A folder with results, a model and the page, to be read only."""
    root = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.delenv("DVC_ROOT", raising=False)
        make_results(root, CLASSES, examples=50)
        save_model(paths.MODEL, 4)
        make_pages()
    return root


@pytest.fixture
def page(finished, monkeypatch) -> str:
    """The source of the page of `finished`; the current folder is that of the results."""
    monkeypatch.chdir(finished)
    return source()


def source() -> str:
    return paths.RESULTS_PAGE.read_text(encoding="utf-8")


def text(page: str | None = None) -> str:
    """What the page says, without its tags, on one line."""
    body = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page or source(), flags=re.DOTALL)
    return " ".join(html.unescape(body).replace("\N{NO-BREAK SPACE}", " ").split())


def test_it_shows_what_the_files_hold(page):
    said = text(page)
    evaluation = json.loads(paths.report("evaluate").read_text())
    for side in ("final", "head"):
        for name, row in evaluation[side]["metrics"].items():
            form = "{:.3f} {:.3f} to {:.3f}" if name == "log_loss" else "{:.1f} % {:.1f} % to {:.1f} %"
            scale = 1 if name == "log_loss" else 100
            assert form.format(*(scale * row[key] for key in ("value", "low", "high"))) in said, (side, name)
    gain = evaluation["gain"]
    assert f"{gain['fixed']} fixed, {gain['regressed']} regressed" in said
    assert findings.selection(TUNED) in said
    assert "refitted on train + val" in said
    assert "1,800 examples of 4 classes" in said
    assert "train_head, settings that params.yaml leaves open: hidden [] , dropout 0.0 , optimizer lbfgs ." in said
    assert 'href="data.html"' in page
    table = pd.read_csv(paths.PREDICTIONS)
    (label, answer), count = next(
        iter(table[table.label != table.predicted].value_counts(["label", "predicted"]).items())
    )
    assert f"{label} {answer} {count} {100 * count / 50:.1f} %" in said
    assert f"{label} predicted as {answer}: {count} (" in page
    assert said.count("for ant") + said.count("for bee") > 0  # where it looks
    assert "evaluate 77.5" in said
    assert "12.2 ms" in said
    assert "12.5 MB" in said
    assert "train_head.dropout" in said
    assert not list(Path("reports").glob(".*"))


@pytest.mark.parametrize(("accuracy", "said"), [(0.9, "1 error in all"), (0.8, "2 errors in all")])
def test_one_error_is_no_errors(workspace, accuracy, said):
    workspace(CLASSES, examples=2, accuracy=accuracy)
    make_pages()
    assert said in text()


def test_classes_are_sorted_by_f1_and_examples_by_confidence(page):
    rows = json.loads(paths.report("evaluate").read_text())["final"]["classes"]
    section = page.split('id="classes"')[1].split("<h2")[0]
    assert re.findall(r'<td class="name">(\w+)</td>', section) == [
        row["class"] for row in sorted(rows, key=lambda row: row["f1"])
    ]
    table = pd.read_csv(paths.PREDICTIONS)
    table["confidence"] = table[[name for name in table if name.startswith("p_")]].max(axis=1)
    wrong = table[table.label != table.predicted].sort_values("confidence", ascending=False)
    correct = table[table.label == table.predicted].sort_values("confidence")
    errors, unsure = page.split("Most confident errors")[1].split("Least confident correct predictions")
    assert re.findall(r'<figure title="([^&"]+)&#10;', errors)[:5] == list(wrong.path[:5])
    assert re.findall(r'<figure title="([^&"]+)&#10;', unsure)[:5] == list(correct.path[:5])
    assert "data:image/webp" in errors


@pytest.mark.parametrize(
    ("computed", "rate", "expected"),
    [
        (20, 812.4, "812 examples per second, extract 28 of 48 features from the feature store"),
        (0, None, "MB models/model.keras 48 of 48 features from the feature store"),
    ],
)
def test_extraction_speed_is_shown_if_anything_was_computed(workspace, computed, rate, expected):
    workspace(["ant", "bee"], examples=3)
    paths.FEATURES_META.parent.mkdir()
    paths.FEATURES_META.write_text("{}")
    figures = {"computed": computed, "from_store": 48 - computed, "examples_per_second": rate, "device": "CPU"}
    costs.write("extract", figures)
    make_pages()
    assert expected in text()


@pytest.mark.parametrize("accuracy", [1.0, 0.0])
@pytest.mark.parametrize("count", [3, 30])
def test_all_correct_and_all_wrong(workspace, accuracy, count):
    workspace([f"c{number}" for number in range(count)], examples=4, accuracy=accuracy)
    make_pages()
    errors = source().split("Most confident errors")[1].split("</div>\n<h3")[0]
    assert text().count("None.") == (2 if accuracy else 1)
    assert errors.count("predicted c") == (0 if accuracy else min(24, 4 * count))


def test_names_cannot_act(workspace):
    evil = EVIL.replace("/", "")
    workspace([evil, "<script>document.title='owned'<\\script>", "a & b", "}}{{ 7 * 7 }}"], examples=4, accuracy=0.5)
    page = results_page.render_results_page(load_params(), ["<b>a remark</b>"], "0")
    assert not re.findall(r"(?:src|href)=[\"'](?!data:image/|#|data\.html[\"'])", page)
    assert "<script" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert evil not in page
    assert "&lt;img src=x onerror=" in page
    assert "&lt;b&gt;a remark" in page
    assert "}}{{ 7 * 7 }}" in page


def test_with_many_classes_the_page_stays_small(workspace, monkeypatch):
    monkeypatch.setattr(confusions, "HOVERS", 50)
    count = 60
    workspace([f"class number {number:03}" for number in range(count)], examples=4, accuracy=0.6)
    make_pages()
    page = source()
    assert len(page) < 2_000_000
    assert page.count("<img") <= 24 + 6 * 8 + 16
    assert "data:image/png" in page.split('id="confusion"')[1].split("<h2")[0]
    table = pd.read_csv(paths.PREDICTIONS)
    wrong = table[table.label != table.predicted]
    assert len(re.findall(r"<rect.*?predicted as", page)) == 50 < len(wrong[["label", "predicted"]].drop_duplicates())
    assert f"{count - results_page.FIRST_ROWS} more" in text()
    assert f"{count:,} classes have fewer than 20 test examples" in text()


def test_the_matrix_of_thousands_of_classes_is_a_bounded_picture():
    random = np.random.default_rng(0)
    classes = np.array([f"c{number}" for number in range(5000)])
    target = np.repeat(np.arange(5000), 3)
    answer = np.where(random.random(len(target)) < 0.5, target, random.integers(0, 5000, len(target)))
    table = pd.DataFrame({"label": classes[target], "predicted": classes[answer], "target": target, "answer": answer})
    shown = confusions.confusion(table, list(classes))
    assert shown["rows"] is None
    assert (len(shown["cells"]), shown["names"]) == (confusions.HOVERS, [])
    assert len(shown["picture"]) < 200_000
    assert confusions.picture(target, answer, 5000).size == (1000, 1000)


# --- when it is made


def test_the_page_is_up_to_date_until_a_result_changes(workspace, capsys):
    workspace(CLASSES[:3], examples=3)

    def is_made() -> bool:
        capsys.readouterr()
        make_pages(if_stale=True)
        return f"report: {paths.RESULTS_PAGE}\n" in capsys.readouterr().out

    assert is_made()
    assert not is_made()
    code = "import sys; from headstart.report.pages import make_pages; make_pages(True); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=ENVIRONMENT)
    assert "headstart.report.pages" in done.stdout
    assert "'tensorflow'" not in done.stdout
    assert "'matplotlib'" not in done.stdout
    for file in (paths.PREDICTIONS, paths.report("evaluate"), paths.curves("fine_tune")):
        file.write_bytes(file.read_bytes() + b"\n")
        assert is_made(), file
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", "seed": 1})
    assert is_made()
    costs.write("prepare", {"prepare_seconds": 3.5})
    assert is_made()
    assert not is_made()


ENVIRONMENT = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}


def test_it_says_that_results_are_out_of_date(page):
    # Without dvc.lock nobody knows what they were made from.
    assert " ".join(pages.OUT_OF_DATE.replace("`", " ").split()) in text(page)


@pytest.mark.parametrize("file", [paths.PREDICTIONS, paths.report("evaluate"), paths.curves("fine_tune")])
def test_without_results_there_is_no_page(workspace, file):
    workspace(["ant", "bee"], examples=2)
    file.unlink()
    with pytest.raises(UserError) as raised:  # there is no data page either
        make_pages()
    assert "does not exist; run `dvc repro`, or `dvc pull`" in str(raised.value)
    assert not paths.RESULTS_PAGE.exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *((paths.report("evaluate"), text) for text in ("{", "[]", "{}", '{"final": 3}', '{"model_mb": NaN}')),
        *((paths.report(stage), "{}") for stage in ("prepare", "train_head", "fine_tune")),
        *((paths.PREDICTIONS, text) for text in ("", "path,label", "\0", "<<<<<<< HEAD")),
        *((paths.RELIABILITY, text) for text in ("", "confidence\nmuch\n", "other\n1\n")),
        (paths.curves("fine_tune"), "epoch,loss\n1,x\n"),
        (paths.ROC, "<<<<<<< HEAD\n"),
        (paths.MANIFEST, "no table"),
        (paths.PREDICTIONS, "path,item_id,label,predicted,p_ant,p_cow\na,1,ant,cow,0.4,0.6\n"),
    ],
)
def test_damaged_results_are_named(workspace, file, content):
    workspace(["ant", "bee"], examples=2)
    file.write_text(content)
    with pytest.raises(UserError, match=rf"{file}.*; (run `dvc|restore it|delete it|the columns must be)"):
        make_pages()
    assert not paths.RESULTS_PAGE.exists()


def test_only_files_that_differ_from_the_record_are_called_damaged(workspace):
    workspace(["ant", "bee"], examples=2)
    outs = [{"path": str(file), "md5": hashlib.md5(file.read_bytes()).hexdigest()} for file in pages.PAGES[1].needed]
    Path("dvc.lock").write_text(yaml.safe_dump({"stages": {"all": {"outs": outs}}}))
    assert pages.changed_files(pages.PAGES[1]) == []
    paths.report("prepare").write_text("{}")
    with pytest.raises(UserError, match=r"dvc\.lock records: reports/prepare\.json \(.*run `dvc checkout --force"):
        make_pages()


def test_without_the_images_or_the_model_it_says_so(workspace):
    workspace(["ant", "bee"], examples=4, accuracy=0.5)
    _, *others = sorted(Path("photos").glob("*/*.png"))
    for file in others:
        Image.new("RGB", (9, 9)).save(file)  # another image than the one that was tested
    make_pages()
    assert "models/model.keras does not exist" in text()
    assert source().count("data:image/webp") <= 3  # the image that is left can be in several lists
    assert "not available" in text()
    shutil.rmtree("photos")
    make_pages()
    assert "data.source 'photos' does not exist" in text()
    assert "data:image/webp" not in source()


def test_without_fine_tuning_there_are_no_curves_of_it(workspace):
    workspace(["ant", "bee"], examples=4, fine_tune=HEAD_ONLY)
    paths.curves("fine_tune").write_text("epoch,loss,accuracy,val_loss,val_accuracy,learning_rate\n")
    make_pages()
    assert "fine_tune.unfreeze leaves nothing to train" in text()
    assert "Nothing was fine-tuned." in text()
    assert "head alone" not in text()


def test_it_says_why_a_network_was_selected():
    assert findings.selection(TUNED).startswith("The fine-tuned network was selected: on val ")
    assert findings.selection(HEAD_ONLY) == "The head was selected: fine_tune.unfreeze leaves nothing to train."


@pytest.mark.parametrize(
    ("changes", "better", "sentence"),
    [
        ({}, True, "on val the fine-tuned network has log loss 0.2500, "),
        ({"last_epoch": 0, "finished": False}, False, "training stopped after epoch 0, since its loss was NaN"),
        ({"last_epoch": 2, "finished": False, "gave_up": True}, False, "training ended after epoch 2, far behind"),
    ],
)
def test_the_reason_names_the_figures_that_decided(changes, better, sentence):
    assert explain(TUNED | changes, better, 0.5).startswith(sentence)


# --- warnings


def caveats(predictions: Predictions) -> str:
    """The warnings about predictions, as a text."""
    classes = [f"class {number}" for number in range(predictions.n_classes)]
    evaluation = {"final": predictions.summary(classes, 100, 0), "gain": {"verdict": "better"}}
    found = findings.caveats(evaluation, True, predictions.reliability(), len(predictions.targets))
    return "\n".join(f"{sentence} {names} {more}" for sentence, names, more in found)


def with_confidence(targets: np.ndarray, answers: np.ndarray, confidence: float) -> Predictions:
    probabilities = np.full((len(targets), targets.max() + 1), (1 - confidence) / targets.max())
    probabilities[np.arange(len(targets)), answers] = confidence
    return Predictions(targets, probabilities, 3)


def test_it_warns_of_few_examples():
    targets = np.arange(60) % 4
    answers = np.where(np.arange(60) < 6, (targets + 1) % 4, targets)
    said = caveats(with_confidence(targets, answers, 0.9))
    assert "only 60 test examples: the true accuracy may be anything from 79.9 to 95.3 %" in said
    assert "4 classes have fewer than 20 test examples" in said
    assert "miscalibrated" not in said


def test_it_warns_of_a_class_with_low_recall():
    targets = np.repeat(np.arange(5), 400)
    answers = targets.copy()
    answers[:200] = 3
    said = caveats(with_confidence(targets, answers, 0.9))
    assert said == "1 class has a recall significantly below the accuracy: ['class 0 (50 %)'] 0"


@pytest.mark.parametrize(("confidence", "direction"), [(0.99, "overconfident"), (0.6, "underconfident")])
def test_it_warns_of_miscalibration(confidence, direction):
    targets = np.repeat(np.arange(4), 1000)
    answers = np.where(np.arange(4000) % 5 == 0, (targets + 1) % 4, targets)
    assert f"the network is {direction}" in caveats(with_confidence(targets, answers, confidence))
    assert caveats(with_confidence(targets, answers, 0.8)) == ""


# --- where it comes from


def test_the_command_reproduces_the_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_EXP_BASELINE_REV", "DVC_EXP_NAME"):
        monkeypatch.delenv(name, raising=False)
    Path("pipeline").mkdir()
    Path("pipeline/evaluate.py").write_text("# code")
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos"})
    git = "git -c user.name=t -c user.email=t@example.org"
    subprocess.run(f"git init -q && git add pipeline params.yaml && {git} commit -qm x", shell=True, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert origin.origin_of(load_params()).command == f"git checkout {commit} && dvc repro"
    changes = {"train_head.dropout": 0.5, "backbone": "vgg16"}
    write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos", **changes})
    found = origin.origin_of(load_params())
    assert found.params == [("backbone", None, "vgg16"), ("train_head.dropout", None, 0.5)]
    assert found.command == f"git checkout {commit} && dvc exp run -S backbone=vgg16 -S train_head.dropout=0.5"
    Path("pipeline/evaluate.py").write_text("# changed")
    Path("pipeline/new.py").write_text("# new")
    found = origin.origin_of(load_params())
    assert found.changed == ["pipeline/evaluate.py", "pipeline/new.py"]
    assert found.command == ""


@pytest.mark.parametrize(
    ("classes", "gone", "said"),
    [
        (("cat", "dog"), False, ""),
        (("cat", "dog", "<owl>"), False, "added: <owl>"),
        (("lynx", "dog"), False, "renamed: cat -> lynx (10 examples)"),
        (("lynx", "dog"), True, ""),  # DVC's cache no longer has the data of the commit
    ],
)
def test_it_says_how_the_classes_differ_from_those_of_the_commit(tmp_path, monkeypatch, classes, gone, said):
    monkeypatch.chdir(tmp_path)
    for name in ("DVC_EXP_BASELINE_REV", "DVC_EXP_NAME", "DVC_ROOT"):
        monkeypatch.delenv(name, raising=False)
    recorded.make_repository()
    for stage in recorded.STAGES:
        recorded.leave(stage)
    recorded.lock()
    recorded.commit("results")
    before = provenance.manifest_md5(Workspace())
    if gone:
        recorded.cache_file(before).unlink()
    for stage in recorded.STAGES:
        recorded.leave(stage, classes=classes, text="again")
    recorded.lock()
    found = origin.origin_of(load_params())
    assert found.classes == said
    assert bool(found.classes) == bool(said) == bool(found.caveats())


def test_other_classes_than_those_of_the_commit_are_shown_first(workspace, monkeypatch):
    workspace(CLASSES[:3], examples=3)
    found = origin.Origin("0123456789abcdef", "", {}, classes="added: <owl>")
    monkeypatch.setattr(results_page, "origin_of", lambda params: found)
    make_pages()
    assert "The classes are not those of the commit 0123456789: added: &lt;owl&gt;. Its figures" in source()
    assert "headstart compare 0123456789" in text()


# --- drawings


def test_charts_are_plain_svg_in_the_colours_of_the_page():
    epochs = np.arange(1, 1001)
    table = pd.DataFrame(
        {"epoch": epochs, "loss": 1 / epochs, "val_loss": np.nan, "accuracy": 0.5, "val_accuracy": 1.0}
    )
    (title, svg), _ = charts.training_curves("<head>", table, 7)
    assert title == "<head>, loss"
    assert svg == charts.training_curves("<head>", table, 7)[0][1]  # the same bytes again
    assert svg.startswith('<svg role="img" aria-label="&lt;head&gt;, loss"')
    assert "var(--train)" in svg
    assert "stroke-dasharray" in svg  # the best epoch
    assert len(svg) < 20_000
    assert not re.findall(r"#[0-9a-f]{6}\b(?!\")|url\(|<style|<script|http", svg)
    assert charts.training_curves("head", table[:0], None) == []
    assert "<use" in charts.training_curves("head", table[:1], 1)[0][1]  # one epoch is a point


def test_confused_classes_stand_together():
    counts = 20 * np.eye(8, dtype=int)
    for a, b in ((0, 5), (1, 6), (2, 7)):
        counts[a, b] = counts[b, a] = 10
    places = np.argsort(confusions.similarity_order(counts))
    assert sorted(places) == list(range(8))
    assert all(abs(places[a] - places[b]) == 1 for a, b in ((0, 5), (1, 6), (2, 7)))


def test_the_picture_shows_each_share_where_it_belongs():
    target, answer = np.array([0, 0, 0, 0, 1, 2]), np.array([0, 0, 0, 2, 1, 2])
    pixels = np.asarray(confusions.picture(target, answer, 3))
    assert pixels[..., 3].tolist() == [[221, 0, 128], [0, 255, 0], [0, 0, 255]]
    assert tuple(pixels[0, 0, :3]) == confusions.CORRECT
    assert tuple(pixels[0, 2, :3]) == confusions.WRONG
    assert confusions.picture(target * 1000, answer * 1000, 2001).size == (667, 667)


# --- where it looks


@pytest.mark.parametrize("pooling", ["avg", "max", "flatten"])
def test_a_planted_region_is_found(pooling):
    """A head that asks for what the network makes of a patch in a corner points at that corner."""
    encoder = get_backbone("tiny").build("pretrained", 128, pooling, 0)
    below = keras.Model(encoder.input, encoder.get_layer(POOL_LAYER).input)
    patch = np.random.default_rng(0).integers(0, 2, (8, 8, 3)).repeat(4, 0).repeat(4, 1) * 255
    corners = [(0, 0), (0, 3), (3, 0), (3, 3)]
    images = np.full((4, 128, 128, 3), 128, np.uint8)
    for image, (y, x) in zip(images, corners, strict=True):
        image[32 * y : 32 * y + 32, 32 * x : 32 * x + 32] = patch
    features = np.asarray(below({"image": images.astype(np.float32)}))
    modality = get_modality("image")
    head = networks.build_head(encoder.output_shape[1], 3, [])
    network = networks.join(modality.front(128), encoder, head)
    classifier = networks.Classifier(network, list("abc"), modality, 128)
    kernel = head.get_layer(networks.LOGITS_LAYER).kernel
    maps = []
    for image, feature_map, corner in zip(images, features, corners, strict=True):
        wanted, weights = feature_map[corner] - feature_map.mean(axis=(0, 1)), np.zeros(kernel.shape, np.float32)
        if pooling == "max":  # nothing else of the patch reaches the head
            wanted = wanted * (feature_map[corner] == feature_map.max(axis=(0, 1)))
        weights[:, 1] = np.tile(wanted, 16) if pooling == "flatten" else wanted
        kernel.assign(weights)
        maps.append(attention.maps(classifier, {"image": image[None]}, np.array([[1, 0]]))[0])
    found = np.concatenate(maps)
    assert found.shape == (4, 2, 4, 4)
    assert [np.unravel_index(one.argmax(), (4, 4)) for one in found[:, 0]] == corners
    # There is evidence against the other classes.
    assert not set(corners) & {np.unravel_index(one.argmax(), (4, 4)) for one in found[:, 1] if one.any()}
    assert found.min() == 0
    assert found.max() == 1


# --- in a browser


def test_a_browser_shows_it(workspace, shown):
    """Every picture is drawn, nothing is fetched, no name acts, in light and dark mode and on paper."""
    evil = EVIL.replace("/", "")
    names = [evil, "b" * 200, *(f"class {number}" for number in range(28))]
    workspace(names, examples=4, accuracy=0.6)
    save_model(paths.MODEL, len(names))
    make_pages()
    tab, requests, errors = shown(paths.RESULTS_PAGE)
    assert errors == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert len([url for url in requests if url.startswith("file")]) == 1
    assert tab.title().startswith("Results: ")
    assert min(tab.evaluate("[...document.images].map(i => i.naturalWidth)")) > 0
    assert tab.locator(".look").count() == 10
    assert tab.locator("#classes ~ .scroll td.name", has_text=evil).count() == 1
    assert tab.locator(".heat rect title").count() > 20
    ink = "getComputedStyle(document.querySelector('.chart svg text')).fill"
    inks = []
    for media in ({"color_scheme": "light"}, {"color_scheme": "dark"}, {"media": "print"}):
        tab.emulate_media(**media)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), media
        inks.append(tab.evaluate(ink))
    assert inks[0] != inks[1]  # charts follow the reader's mode
    colours = "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
    tab.emulate_media(media="screen", color_scheme="dark")
    by_night = tab.evaluate(colours)
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate(colours) != by_night  # ink is not wasted on a dark page
    tab.emulate_media(media="screen")
    tab.set_viewport_size({"width": 420, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
