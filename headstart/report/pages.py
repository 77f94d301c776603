"""Make the two pages, reports/data.html and reports/report.html, from the files that the stages leave.

The pages are no outputs of a stage: they also show what no stage depends on, such as seconds and the commit, and a
change of their own code must not run a stage again.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from headstart import costs, paths
from headstart.config import Params, load_params
from headstart.errors import UserError, one_line
from headstart.evaluation.formatting import write_text
from headstart.lockfile import LOCK, Workspace, is_as_locked, md5_of, read_stages, up_to_date_stages

OUT_OF_DATE = (
    "According to dvc.lock, these results are not those of the current params.yaml and code. Run `dvc repro` to update "
    "them."
)
FINGERPRINT = re.compile(rb'<meta name="fingerprint" content="([0-9a-f]+)">')


@dataclass(frozen=True)
class Page:
    """A page and what it is made from.

    Attributes:
        stage: whose results it shows.
        needed: files without which it cannot be made.
    """

    file: Path
    stage: str
    needed: tuple[Path, ...]

    def render(self, params: Params, remarks: list[str], fingerprint: str) -> str:
        """Return the page as HTML."""
        # matplotlib and TensorFlow take seconds to import: a page that is up to date needs neither.
        if self.stage == "prepare":
            from headstart.report.data_page import render_data_page

            return render_data_page(params, remarks, fingerprint)
        from headstart.report.results_page import render_results_page

        return render_results_page(params, remarks, fingerprint)

    def fingerprint(self, params: Params, remarks: list[str]) -> str:
        """Return a hash of everything that the page shows, without the pictures."""
        shown: list[object] = [remarks, md5_of(Workspace(Path(__file__).parent), ".")]  # with the code of the pages
        if self.stage == "prepare":
            shown += [params.seed, params.data, params.prepare]
        else:
            shown += [params, *(sorted(costs.read(stage).items()) for stage in costs.RESULTS)]
        digest = blake3(repr(shown).encode(), max_threads=blake3.AUTO)
        for file in self.needed:
            digest.update(file.as_posix().encode() + b"\0")
            digest.update_mmap(file)
        return digest.hexdigest(length=16)


RESULTS = (
    *map(paths.report, ("evaluate", "prepare", "train_head", "fine_tune")),
    *map(paths.curves, ("train_head", "fine_tune")),
    *(paths.PREDICTIONS, paths.MANIFEST, paths.RELIABILITY, paths.PRECISION_RECALL, paths.ROC),
)
PAGES = (
    Page(
        paths.DATA_PAGE, "prepare", (paths.FILES, paths.IGNORED, paths.CLASSES, paths.READING, paths.report("prepare"))
    ),
    Page(paths.RESULTS_PAGE, "evaluate", RESULTS),
)


def make_pages(if_stale: bool = False) -> None:
    """Make each page whose inputs are there, and print which; a page appears whole.

    Args:
        if_stale: leave pages that show the present results and params.

    Raises:
        UserError: if the inputs of no page are there, or a file is not what a stage writes.
    """
    params = load_params()
    up_to_date = up_to_date_stages(Workspace(), params.model_dump(), is_as_locked)
    skipped = []
    for page in PAGES:
        missing = next((file for file in page.needed if not file.is_file()), None)
        if missing:
            skipped.append(f"{page.file}: {missing} does not exist; run `dvc repro`, or `dvc pull` if a remote has it")
            continue
        remarks = [] if page.stage in up_to_date else [OUT_OF_DATE]
        fingerprint = page.fingerprint(params, remarks)
        if if_stale and _fingerprint_of(page.file) == fingerprint:
            continue
        write_text(_render(page, params, remarks, fingerprint), page.file)
        print(f"report: {page.file}")
    if len(skipped) == len(PAGES):
        raise UserError(skipped[0])
    for line in skipped:
        print(f"report: skipped {line}")


def current_pages(params: Params) -> dict[Path, str]:
    """Return the pages that show the present results and params, each with its fingerprint."""
    pages = [page for page in PAGES if all(file.is_file() for file in page.needed)]
    fingerprints = {page.file: page.fingerprint(params, []) for page in pages}
    return {file: fingerprint for file, fingerprint in fingerprints.items() if _fingerprint_of(file) == fingerprint}


def _fingerprint_of(file: Path) -> str:
    """The fingerprint that a page was made with, or nothing if there is no such page."""
    if not file.is_file():
        return ""
    with file.open("rb") as stream:
        match = FINGERPRINT.search(stream.read(4096))
    return match[1].decode() if match else ""


def _render(page: Page, params: Params, remarks: list[str], fingerprint: str) -> str:
    try:
        return page.render(params, remarks, fingerprint)
    except UserError:
        raise
    except Exception as error:
        damaged = changed_files(page)
        if not damaged:  # then the mistake is ours
            raise
        raise UserError(
            f"{page.file} cannot be made, since these files are not those that dvc.lock records: {', '.join(damaged)} "
            f"({one_line(error)}); run `dvc checkout --force {damaged[0]}`, or `dvc repro`"
        ) from error


def changed_files(page: Page) -> list[str]:
    """Return the files that a page is made from and that differ from dvc.lock, or are not in it."""
    entries = read_stages(Workspace(), LOCK).values()
    locked = {out["path"]: out for entry in entries for out in entry.get("outs", [])}
    files = [file.as_posix() for file in page.needed]
    return [file for file in files if file not in locked or not is_as_locked(locked[file])]
