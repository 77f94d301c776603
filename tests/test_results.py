"""The page of results, as a team and a browser see it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, SMALL, write_params
from PIL import Image

from headstart import paths
from headstart.backbones import keras_applications
from headstart.errors import UserError
from headstart.evaluation.metrics import Predictions
from headstart.evaluation.paired import Pair
from headstart.framework import keras
from headstart.modalities.image.decode import file_hash
from headstart.outputs import Outputs
from headstart.report import attention, confusions, drawings, findings, origin, results_page
from headstart.report.charts import ticks
from headstart.training import networks
from pipeline.evaluate import judged

EVIL = "<img src=x onerror=\"document.title='owned'\">"


def drawn(classes: int, images: int, accuracy: float, seed: int = 0) -> Predictions:
    """Of as many images of each class; where it is wrong it takes a class for one of two others."""
    random = np.random.default_rng(seed)
    targets = np.repeat(np.arange(classes), images)
    wrong = random.random(len(targets)) > accuracy
    others = np.where(random.random(len(targets)) < 0.6, targets ^ 1, targets + 2) % classes
    answers = np.where(wrong, others, targets)
    probabilities = random.random((len(targets), classes)) * 0.02 / classes
    probabilities[np.arange(len(targets)), answers] += random.uniform(0.6, 1, len(targets))
    return Predictions(targets, probabilities / probabilities.sum(axis=1, keepdims=True), 3)


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Callable[..., Path]:
    """Makes the files that the stages leave, for made-up predictions on small images; goes there."""

    def make(classes: list[str], images: int = 30, accuracy: float = 0.9, model: bool = False, **metrics) -> Path:
        root = tmp_path / "work"
        root.mkdir()
        monkeypatch.chdir(root)
        shutil.copytree(ROOT / "pipeline", "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "dvc.yaml", "dvc.yaml")
        write_params(Path("params.yaml"), **{**SMALL, "data.source": "photos"})
        final, head = drawn(len(classes), images, accuracy), drawn(len(classes), images, accuracy - 0.1, seed=1)
        rows, names = [], np.array(classes)
        for place, target in enumerate(final.targets):
            path = f"{classes[target]}/{place}.png"
            (Path("photos") / path).parent.mkdir(parents=True, exist_ok=True)
            colour = (40 * target % 256, place % 256, 90)
            Image.new("RGB", (24, 16), colour).save(Path("photos") / path)
            digest = file_hash((Path("photos") / path).read_bytes())
            rows.append((path, f"{place:032x}", classes[target], digest, "test"))
        table = pd.DataFrame(rows, columns=["path", "item_id", "label", "file_hash", "split"])
        paths.MANIFEST.parent.mkdir(parents=True)
        table.to_parquet(paths.MANIFEST)
        monkeypatch.setattr("headstart.evaluation.paired.RESAMPLES", 50)
        outputs, gain = Outputs(), Pair(head, final)
        outputs.json(paths.CLASSES, classes)
        found = {
            name: judged(side, side.per_class(classes), 100, 0) for name, side in (("final", final), ("head", head))
        }
        gained = {"verdict": gain.verdict(), "p": gain.p_value(), "mended": gain.mended, "broken": gain.broken}
        found["gain"] = {**gained, "metrics": gain.differences().to_dict("records")}
        outputs.json(paths.report("evaluate"), found)
        outputs.json(paths.metrics("evaluate"), {**final.metrics(), "images": len(table), "model_mb": 12.5})
        outputs.csv(paths.RELIABILITY, final.reliability())
        curve = final.curves().query("curve == 'precision_recall'")[["x", "y"]]
        outputs.csv(paths.PRECISION_RECALL, curve.set_axis(["recall", "precision"], axis=1))
        answers = pd.DataFrame(final.probabilities, columns=[f"p_{name}" for name in classes])
        told = table[["path", "item_id", "label"]].assign(predicted=names[final.predicted])
        outputs.csv(paths.CONFUSION, told[["label", "predicted"]].set_axis(["actual", "predicted"], axis=1))
        outputs.csv(paths.PREDICTIONS, pd.concat([told, answers], axis=1))
        split = {"train": 7 * len(table), "val": len(table), "test": len(table)}
        files = {"seen": 9 * len(table) + 3, "accepted": 9 * len(table), "quarantined": 3, "ignored": 0}
        prepared = {"images": split, "classes": len(classes), "imbalance": 1.5, "files": files}
        outputs.json(paths.metrics("prepare"), prepared)
        outputs.json(paths.metrics("train_head"), {"val_accuracy": 0.8, "best_epoch": 2})
        tuned = {"fine_tuned": True, "head_val_loss": 0.5, "tuned_val_loss": 0.25, "tuned_confidence": 0.987}
        tuned |= {"last_epoch": 3, "finished": True, "refitted": False}
        outputs.json(paths.metrics("fine_tune"), {**tuned, **metrics})
        columns = ["epoch", "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate"]
        epochs = [(epoch, 1 / epoch, 1 - 0.3 / epoch, 1.2 / epoch, 1 - 0.4 / epoch, 0.001) for epoch in (1, 2, 3)]
        for stage in ("train_head", "fine_tune"):
            outputs.csv(paths.curves(stage), pd.DataFrame(epochs, columns=columns))
        outputs.json(paths.COST, {"prepare_seconds": 2.5, "fine_tune_seconds": 77.5, "latency_ms": 12.25})
        if model:
            trunk = keras_applications.build_trunk("tiny", "none", 32, "avg", 0)
            networks.save(
                networks.join(trunk, networks.build_head(1280, len(classes), [])), outputs.path(paths.MODEL), classes
            )
        outputs.commit()
        return root

    return make


def text(page: Path = paths.RESULTS_PAGE) -> str:
    """What the page says, without its tags, on one line."""
    body = re.sub(r"<style>.*?</style>|<[^>]*>", " ", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return " ".join(html.unescape(body).replace("\N{NO-BREAK SPACE}", " ").split())


def test_it_tells_what_the_files_tell(workspace):
    workspace(["ant", "bee", "cow", "dog"], images=50, accuracy=0.9, model=True)
    chosen = {"hidden": [], "dropout": 0.0, "optimizer": "lbfgs", "activation": "relu"}  # the last as params have it
    paths.report("train_head").write_text(json.dumps(chosen), encoding="utf-8")
    results_page.write()
    said, page = text(), paths.RESULTS_PAGE.read_text(encoding="utf-8")
    evaluation = json.loads(paths.report("evaluate").read_text())
    for side in ("final", "head"):
        for name, row in evaluation[side]["metrics"].items():
            form = "{:.3f} {:.3f} to {:.3f}" if name == "log_loss" else "{:.1f} % {:.1f} % to {:.1f} %"
            scale = 1 if name == "log_loss" else 100
            assert form.format(*(scale * row[key] for key in ("value", "low", "high"))) in said, (side, name)
    gain = evaluation["gain"]
    assert f"{gain['mended']} images mended, {gain['broken']} broken" in said
    assert (
        "The fine-tuned network is shipped: on the val images its log loss is 0.2500, that of the head 0.5000" in said
    )
    assert "confidence that its probabilities are better, by the Brier score, is 0.987, and 0.5 is asked for" in said
    assert "1,800 images of 4 classes" in said
    assert "where params leave it open: hidden [] , dropout 0.0 , optimizer lbfgs ." in said
    assert "fine_tune, as it was trained" not in said
    assert 'href="data.html"' in page
    table = pd.read_csv(paths.PREDICTIONS)
    first = table[table.label != table.predicted].value_counts(["label", "predicted"])
    (label, answer), count = first.index[0], first.iloc[0]
    assert f"{label} {answer} {count} {100 * count / 50:.1f} %" in said
    assert f"{label} taken for {answer}: {count} (" in page
    assert page.count("<polyline") == 2 * 4 + 2
    assert said.count("for ant") + said.count("for bee") > 0  # where it looks
    assert "fine_tune 77.5" in said
    assert "12.2 ms" in said
    assert "12.5 MB" in said
    assert "train_head.dropout" in said
    assert not list(Path("reports").glob(".*"))


@pytest.mark.parametrize(
    ("computed", "rate", "shown"),
    [
        (20, 812.4, "812 images a second, extracted 28 of 48 features"),
        (0, None, "MB models/model.keras 48 of 48 features"),
    ],
)
def test_it_tells_how_fast_features_came_where_any_were_computed(workspace, computed, rate, shown):
    workspace(["ant", "bee"], images=10)
    figures = {"images": 48, "computed": computed, "from_store": 48 - computed, "images_per_second": rate}
    paths.metrics("extract").write_text(json.dumps({**figures, "device": "CPU, 2 cores"}))
    results_page.write()
    assert shown in text()


def test_classes_stand_by_f1_the_worst_first(workspace):
    workspace(["ant", "bee", "cow", "dog"])
    results_page.write()
    rows = json.loads(paths.report("evaluate").read_text())["final"]["classes"]
    ordered = [row["class"] for row in sorted(rows, key=lambda row: row["f1"])]
    section = paths.RESULTS_PAGE.read_text(encoding="utf-8").split('id="classes"')[1].split("<h2")[0]
    assert re.findall(r'<td class="name">(\w+)</td>', section) == ordered


def test_the_surest_error_comes_first_and_the_least_sure_right_answer(workspace):
    workspace(["ant", "bee", "cow", "dog"])
    results_page.write()
    table = pd.read_csv(paths.PREDICTIONS)
    table["sure"] = table[[name for name in table if name.startswith("p_")]].max(axis=1)
    wrong = table[table.label != table.predicted].sort_values("sure", ascending=False)
    right = table[table.label == table.predicted].sort_values("sure")
    page = paths.RESULTS_PAGE.read_text(encoding="utf-8")
    errors, unsure = page.split("The surest errors")[1].split("Right, but hardly")
    assert re.findall(r'<figure title="([^&"]+)&#10;', errors)[:5] == list(wrong.path[:5])
    assert re.findall(r'<figure title="([^&"]+)&#10;', unsure)[:5] == list(right.path[:5])
    assert "data:image/webp" in errors


@pytest.mark.parametrize("accuracy", [1.0, 0.0])
@pytest.mark.parametrize("count", [3, 30])
def test_all_right_and_all_wrong(workspace, accuracy, count):
    workspace([f"c{number}" for number in range(count)], images=4, accuracy=accuracy, model=True)
    results_page.write()
    surest = paths.RESULTS_PAGE.read_text(encoding="utf-8").split("The surest errors")[1].split("</div>\n<h3")[0]
    assert text().count("None.") == (2 if accuracy else 1)
    assert surest.count("said c") == (0 if accuracy else min(24, 4 * count))


def test_names_cannot_act(workspace):
    evil = EVIL.replace("/", "")
    workspace([evil, "<script>document.title='owned'<\\script>", "a & b", "}}{{ 7 * 7 }}"], model=True)
    results_page.write(["<b>a remark</b>"])
    page = paths.RESULTS_PAGE.read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=[\"'](?!data:image/|#|data\.html[\"'])", page)
    assert "<script" not in page
    assert "url(" not in page
    assert "default-src 'none'" in page
    assert evil not in page
    assert "&lt;img src=x onerror=" in page
    assert "&lt;b&gt;a remark" in page
    assert "}}{{ 7 * 7 }}" in page


@pytest.mark.parametrize("count", [60, 200])
def test_of_many_classes_the_page_stays_small(workspace, monkeypatch, count):
    monkeypatch.setattr(drawings, "HOVERS", 50)
    workspace([f"class number {number:03}" for number in range(count)], images=12, accuracy=0.6)
    results_page.write()
    page = paths.RESULTS_PAGE.read_text(encoding="utf-8")
    assert len(page) < 2_000_000
    assert page.count("<img") <= 24 + 6 * 8 + 16
    assert "data:image/png" in page.split('id="confusion"')[1].split("<h2")[0]
    table = pd.read_csv(paths.CONFUSION)
    wrong = table[table.actual != table.predicted]
    assert len(re.findall(r"<rect.*?taken for", page)) == 50 < len(wrong.drop_duplicates())
    assert f"{count - results_page.FIRST_ROWS} more" in text()
    assert f"{count:,} classes have fewer than 20 test images" in text()


def test_the_page_is_current_until_a_result_changes(workspace):
    workspace(["ant", "bee", "cow"])
    assert not results_page.is_current()
    results_page.write()
    assert results_page.is_current()
    code = "import sys; from pipeline import results; results.main(['--if-stale']); print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    for file in (
        paths.PREDICTIONS,
        paths.report("evaluate"),
        paths.metrics("evaluate"),
        Path("params.yaml"),
        paths.COST,
    ):
        before = file.read_bytes()
        file.write_bytes(before + b"\n")
        assert not results_page.is_current(), file
        file.write_bytes(before)
        assert results_page.is_current()
    paths.PREDICTIONS.write_bytes(paths.PREDICTIONS.read_bytes() + b"\n")
    assert results_page.main(["--if-stale"]) == 0
    assert results_page.is_current()


def test_the_command_says_where_params_have_moved_on(workspace, capsys):
    workspace(["ant", "bee"])  # without dvc.lock nothing tells what they were made of
    assert results_page.main([]) == 0
    assert capsys.readouterr().out == "results: reports/report.html\n"
    assert results_page.OUTDATED in text()


@pytest.mark.parametrize("file", [paths.PREDICTIONS, paths.report("evaluate"), paths.curves("fine_tune")])
def test_without_results_there_is_no_page(workspace, capsys, file):
    workspace(["ant", "bee"])
    file.unlink()
    with pytest.raises(UserError, match=re.escape(f"{file} does not exist; run `dvc repro`")):
        results_page.write()
    assert results_page.main([]) == 1
    assert "Traceback" not in capsys.readouterr().err
    assert not paths.RESULTS_PAGE.exists()


def test_without_the_images_or_the_model_it_says_so(workspace):
    workspace(["ant", "bee"])
    Image.new("RGB", (9, 9)).save("photos/ant/0.png")
    results_page.write()  # no model
    assert "models/model.keras does not exist" in text()
    assert "data:image/webp" in paths.RESULTS_PAGE.read_text()
    shutil.rmtree("photos")
    results_page.write()
    assert "data.source 'photos' does not exist" in text()
    assert "data:image/webp" not in paths.RESULTS_PAGE.read_text()


def test_an_image_that_is_another_now_is_not_shown(workspace):
    workspace(["ant", "bee"], accuracy=0.5)
    for file in Path("photos").glob("*/*.png"):
        Image.new("RGB", (9, 9)).save(file)
    results_page.write()
    assert "data:image/webp" not in paths.RESULTS_PAGE.read_text()
    assert "no picture" in text()


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({"fine_tuned": False}, "The head as it was is shipped. Fine-tuning was tried: on the val images its log loss"),
        (
            {"fine_tuned": False, "tuned_folds_loss": 0.75, "head_folds_loss": 0.7},
            "Fine-tuning was tried: folds of train and val judged what such training leads to: "
            "its log loss is 0.7500, that of the head 0.7000;",
        ),
        (
            {"fine_tuned": False, "last_epoch": 0, "finished": False, "tuned_folds_loss": 0.1, "head_folds_loss": 0.7},
            "The head as it was is shipped: fine-tuning broke off after epoch 0, its loss being no number.",
        ),
        (
            {"fine_tuned": False, "last_epoch": 0, "finished": False},
            "The head as it was is shipped: fine-tuning broke off after epoch 0, its loss being no number.",
        ),
        (
            {"fine_tuned": False, "last_epoch": 2, "finished": False},
            "with no fewer answers right. Training broke off after epoch 2, its loss being no number.",
        ),
    ],
)
def test_it_says_why_the_head_is_shipped(workspace, metrics, sentence):
    workspace(["ant", "bee"], **metrics)
    results_page.write()
    assert sentence in text()
    assert "head alone" not in text()


@pytest.mark.parametrize("refitted", [True, False])
def test_it_says_what_was_trained_on_val_too(workspace, refitted):
    workspace(["ant", "bee"], refitted=refitted)
    results_page.write()
    assert ("Then it was trained again, the same way, on train and val." in text()) is refitted


def test_without_fine_tuning_there_are_no_curves_of_it(workspace):
    workspace(["ant", "bee"])
    paths.curves("fine_tune").write_text("epoch,loss,accuracy,val_loss,val_accuracy,learning_rate\n")
    paths.metrics("fine_tune").write_text('{"fine_tuned": false}')
    results_page.write()
    assert "fine_tune.unfreeze leaves nothing to train" in text()
    assert "Nothing was fine-tuned." in text()


# --- warnings


def told(predictions: Predictions) -> str:
    """The warnings about predictions, as a text."""
    classes = [f"class {number}" for number in range(predictions.n_classes)]
    evaluation = {"final": judged(predictions, predictions.per_class(classes), 100, 0), "gain": {"verdict": "better"}}
    found = findings.warnings(evaluation, True, predictions.reliability(), len(predictions.targets))
    return "\n".join(f"{sentence} {names} {more}" for sentence, names, more in found)


def sure(targets: np.ndarray, answers: np.ndarray, confidence: float) -> Predictions:
    probabilities = np.full((len(targets), targets.max() + 1), (1 - confidence) / targets.max())
    probabilities[np.arange(len(targets)), answers] = confidence
    return Predictions(targets, probabilities, 3)


def test_it_warns_of_few_images():
    targets = np.arange(60) % 4
    answers = np.where(np.arange(60) < 6, (targets + 1) % 4, targets)
    said = told(sure(targets, answers, 0.9))
    assert "60 test images are few: the accuracy may as well be 79.9 or 95.3 %" in said
    assert "4 classes have fewer than 20 test images" in said
    assert "taken at their word" not in said


def test_it_warns_of_a_class_that_is_hardly_found():
    targets = np.repeat(np.arange(5), 400)
    answers = targets.copy()
    answers[:200] = 3
    said = told(sure(targets, answers, 0.9))
    assert said == "1 class is found far less often than the others, beyond chance: ['class 0 (50 %)'] 0"


@pytest.mark.parametrize(("confidence", "direction"), [(0.99, "too sure"), (0.6, "less sure than it could be")])
def test_it_warns_of_probabilities_that_are_not_true(confidence, direction):
    targets = np.repeat(np.arange(4), 1000)
    answers = np.where(np.arange(4000) % 5 == 0, (targets + 1) % 4, targets)
    assert f"the network is {direction}" in told(sure(targets, answers, confidence))
    assert told(sure(targets, answers, 0.8)) == ""


# --- where it comes from


def test_the_command_makes_the_results_again(workspace):
    root = workspace(["ant", "bee"])
    git = "git -c user.name=t -c user.email=t@example.org"
    subprocess.run(
        f"git init -q && git add pipeline dvc.yaml params.yaml photos && {git} commit -qm x", shell=True, check=True
    )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert origin.found().command == f"git checkout {commit} && dvc repro"
    write_params(
        Path("params.yaml"), **{**SMALL, "data.source": "photos", "train_head.dropout": 0.5, "backbone": "vgg16"}
    )
    found = origin.found()
    assert found.params == [("backbone", "tiny", "vgg16"), ("train_head.dropout", None, 0.5)]
    assert found.command == f"git checkout {commit} && dvc exp run -S backbone=vgg16 -S train_head.dropout=0.5"
    (root / "pipeline/evaluate.py").write_text("# changed")
    (root / "pipeline/new.py").write_text("# new")
    assert origin.found().changed == ["pipeline/evaluate.py", "pipeline/new.py"]
    results_page.write()
    assert f"not as in commit {commit[:10]}" in text()
    assert "dvc exp run -S" not in text()


# --- drawings


def test_classes_that_are_confused_stand_together():
    counts = 20 * np.eye(8, dtype=int)
    for a, b in ((0, 5), (1, 6), (2, 7)):
        counts[a, b] = counts[b, a] = 10
    places = np.argsort(confusions.order(counts))
    assert sorted(places) == list(range(8))
    assert all(abs(places[a] - places[b]) == 1 for a, b in ((0, 5), (1, 6), (2, 7)))


def test_the_picture_shows_each_share_where_it_belongs():
    actual, answer = np.array([0, 0, 0, 0, 1, 2]), np.array([0, 0, 0, 2, 1, 2])
    pixels = np.asarray(confusions.picture(actual, answer, 3))
    assert pixels[..., 3].tolist() == [[221, 0, 128], [0, 255, 0], [0, 0, 255]]
    assert tuple(pixels[0, 0, :3]) == confusions.RIGHT
    assert tuple(pixels[0, 2, :3]) == confusions.WRONG
    assert confusions.picture(actual * 1000, answer * 1000, 2001).size == (667, 667)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.0003), (1, 20), (0.9, 1), (3, 10000), (0, 7e9)])
def test_ticks_are_few_and_round(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert all(tick == int(tick) for tick in ticks(low, high, least=1))
    assert all(low - 1e-9 * high <= tick <= high * (1 + 1e-9) for tick in found)


# --- where it looks


@pytest.mark.parametrize("pooling", ["avg", "max", "flatten"])
def test_a_planted_region_is_found(tmp_path, pooling):
    """A head that asks for what the network makes of a patch in a corner points at that corner."""
    trunk = keras_applications.build_trunk("tiny", "pretrained", 128, pooling, 0)
    below = keras.Model(trunk.input, trunk.get_layer(keras_applications.POOL_LAYER).input)
    patch = np.random.default_rng(0).integers(0, 2, (8, 8, 3)).repeat(4, 0).repeat(4, 1) * 255
    corners = [(0, 0), (0, 3), (3, 0), (3, 3)]
    images = np.full((4, 128, 128, 3), 128, np.uint8)
    for image, (y, x) in zip(images, corners, strict=True):
        image[32 * y : 32 * y + 32, 32 * x : 32 * x + 32] = patch
    features = np.asarray(below(images.astype(np.float32)))
    networks.save(
        networks.join(trunk, networks.build_head(trunk.output_shape[1], 3, [])), tmp_path / "model.keras", list("abc")
    )
    model, _ = networks.load(tmp_path / "model.keras")
    kernel = model.get_layer("head").get_layer(networks.LOGITS_LAYER).kernel
    maps = []
    for image, of, corner in zip(images, features, corners, strict=True):
        wanted, weights = of[corner] - of.mean(axis=(0, 1)), np.zeros(kernel.shape, np.float32)
        if pooling == "max":  # nothing else of the patch reaches the head
            wanted = wanted * (of[corner] == of.max(axis=(0, 1)))
        weights[:, 1] = np.tile(wanted, 16) if pooling == "flatten" else wanted
        kernel.assign(weights)
        maps.append(attention.maps(model, image[None], np.array([[1, 0]])))
    found = np.concatenate(maps)
    assert found.shape == (4, 2, 4, 4)
    assert [np.unravel_index(of.argmax(), (4, 4)) for of in found[:, 0]] == corners
    # The others are spoken against there.
    assert not set(corners) & {np.unravel_index(of.argmax(), (4, 4)) for of in found[:, 1] if of.any()}
    assert found.min() == 0
    assert found.max() == 1


# --- in a browser


def test_a_browser_shows_it(workspace, shown):
    """Every picture is drawn, nothing is fetched, no name acts, by day, by night and on paper."""
    evil = EVIL.replace("/", "")
    workspace([evil, "b" * 200, *(f"class {number}" for number in range(28))], images=8, accuracy=0.6, model=True)
    results_page.write()
    tab, requests, errors = shown(paths.RESULTS_PAGE)
    assert errors == []
    assert {url.split(":")[0] for url in requests} <= {"file", "data"}
    assert len([url for url in requests if url.startswith("file")]) == 1
    assert tab.title().startswith("Results: ")
    assert min(tab.evaluate("[...document.images].map(i => i.naturalWidth)")) > 0
    assert tab.locator(".look").count() == 10
    assert tab.locator("#classes ~ .scroll td.name", has_text=evil).count() == 1
    assert tab.locator(".heat rect title").count() > 20
    for media in ({"color_scheme": "light"}, {"color_scheme": "dark"}, {"media": "print"}):
        tab.emulate_media(**media)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), media
    colours = "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
    tab.emulate_media(media="screen", color_scheme="dark")
    by_night = tab.evaluate(colours)
    tab.emulate_media(media="print", color_scheme="dark")
    assert tab.evaluate(colours) != by_night  # ink is not wasted on a dark page
    tab.emulate_media(media="screen")
    tab.set_viewport_size({"width": 420, "height": 800})
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
