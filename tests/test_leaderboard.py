from __future__ import annotations

import subprocess
from pathlib import Path

from headstart.evaluation import leaderboard


def test_files_of_revisions_are_read_as_they_were_committed(tmp_path):
    def git(*arguments: str) -> None:
        command = ["git", "-c", "user.name=A", "-c", "user.email=a@b.c", *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)

    files = {"params.yaml": b"seed: 1\n", "a folder/of two words.bin": bytes(range(256)) * 4000, "empty": b""}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    (tmp_path / "params.yaml").write_bytes(b"seed: 2\n")
    git("commit", "-am", "two")
    with leaderboard._committed(str(tmp_path)) as content:
        for _ in range(3):
            for name, expected in files.items():
                assert leaderboard._of_revision(content, "HEAD~1", Path())(Path(name)) == expected
            for name in ("none", "a folder", "none\nparams.yaml"):
                assert leaderboard._of_revision(content, "HEAD", Path())(Path(name)) is None
        assert leaderboard._of_revision(content, "HEAD", Path())(Path("params.yaml")) == b"seed: 2\n"
        assert leaderboard._of_revision(content, "HEAD", Path("a folder"))(Path("of two words.bin"))
        assert leaderboard._of_revision(content, "nowhere", Path())(Path("params.yaml")) is None
