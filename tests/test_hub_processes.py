"""Two processes that want the same weights at the same time: one downloads, the other waits for it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("keras_hub", exc_type=ImportError)
from conftest import ROOT
from hub_server import serve
from text_models import write_bert

from headstart.backbones import hub_files

BERT = "owner/bert"


@pytest.mark.slow
def test_of_two_processes_one_downloads(monkeypatch, tmp_path):
    """The other says whom it waits for, and takes what is there then."""
    name, made = "model.safetensors", write_bert(tmp_path / "bert")
    with serve(monkeypatch, tmp_path) as hub:
        hub.files[BERT] = {file.name: file.read_bytes() for file in made.iterdir()}
        hub.held[name] = threading.Event()  # neither is done before both have come
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        command = [sys.executable, "-m", "headstart", "backbones", "fetch", f"hf:{BERT}"]
        outputs = [tmp_path / "one.txt", tmp_path / "other.txt"]
        processes = []
        try:
            for output in outputs:
                with output.open("w") as opened:
                    processes.append(
                        subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=opened, stderr=opened)
                    )
            deadline = time.monotonic() + 60
            waiting: list[str] = []
            while not waiting and time.monotonic() < deadline and None in [one.poll() for one in processes]:
                time.sleep(0.05)
                waiting = [text for file in outputs if f"hf:{BERT} is being downloaded" in (text := file.read_text())]
            hub.held[name].set()
            codes = [process.wait(60) for process in processes]
        finally:
            hub.held[name].set()
            for process in processes:
                process.kill()
                process.wait()
        texts = [file.read_text() for file in outputs]
        assert codes == [0, 0], texts
        assert waiting, texts
        folder = tmp_path / "keras" / "models" / "owner--bert"
        known = hub_files.read_lock(folder)
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            assert sum(line.startswith("GET") and line.endswith(f"/{file}") for line in hub.asked) == 1
            assert (folder / file).read_bytes() == hub.files[BERT][file]
            assert known[file]["sha256"] == hub_files.file_sha256(folder / file)
        assert all(f"its files are in {folder}" in text for text in texts)
