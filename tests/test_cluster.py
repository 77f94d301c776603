"""Clusters: what a machine says, what a worker computes, and (slow) a real Ray on this machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import psutil
import pytest
from conftest import ROOT, make_extracted, paint, run_stages, write_params

from headstart import keras_backend, paths, ray_cluster
from headstart.config import load_params
from headstart.data.layouts import open_examples
from headstart.data.prepared import load_manifest
from headstart.errors import UserError
from headstart.features import ray_executor, ray_worker
from headstart.features.ray_executor import RayExecutor
from headstart.features.ray_worker import Job, Machine, Worker
from headstart.features.store import fingerprint
from headstart.features.views import ViewIndex, Views
from headstart.modalities import load_modality


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """A folder with the features of photos, and of two views of each in train, as this machine computes them."""
    return make_extracted(tmp_path_factory.mktemp("cluster"), **{"extract.views": 2})


@pytest.fixture
def here(done, monkeypatch) -> Path:
    """That folder. A worker goes to it, and limits itself to its cores."""
    monkeypatch.chdir(done)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("HEADSTART_CORES", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    return done


def make_job(**changes: object) -> Job:
    params, modality = load_params(), load_modality()
    first = load_manifest().iloc[0]
    known = {"versions": ray_worker.versions(), **changes}
    return Job(
        params=ray_executor.localize(params).model_dump(),
        kind=modality.name,
        reading=modality.reading,
        depth="half",
        batch_size=None,
        root=os.getcwd(),
        example=(first.path, first.file_hash),
        **known,
    )


def make_block(count: int, number: int = 0) -> pd.DataFrame:
    """The views `number` of the first examples of train."""
    train = load_manifest().query("split == 'train'")[:count]
    block = train[["path", "file_hash"]].reset_index(drop=True)
    return block.assign(number=number, view=np.arange(count) + 100)


@pytest.fixture
def versions(monkeypatch) -> dict[str, str]:
    """Those of this machine: Ray may be missing."""
    found = {"Python": "3.11", "keras": "3.15.1", "code of headstart": "0123abcd"}
    monkeypatch.setattr(ray_worker, "versions", lambda: dict(found))
    return found


def test_a_worker_computes_what_this_machine_does(here, versions):
    worker = Worker(make_job())
    block = make_block(5)
    found = worker(block)
    assert sorted(found["view"]) == [100, 101, 102, 103, 104]
    expected = np.load(paths.FEATURES["train"])[:5]
    assert (found["features"][np.argsort(found["view"])] == expected).all()
    views = worker(make_block(4, number=2))
    assert (views["features"][np.argsort(views["view"])] == np.load(paths.TRAIN_VIEWS)[:4, 1]).all()
    assert not found["oom"].any()
    assert set(found["error"]) == {""}


def test_examples_may_be_sent_along_once(here, versions, monkeypatch):
    """However many views of them there are."""
    manifest, encoder = load_manifest(), make_job().encoder()
    with open_examples(encoder.params.data, encoder.modality) as source:
        views = Views(ViewIndex(manifest, 2, encoder.loader(source)), encoder.loader(source))
        executor = RayExecutor(None, None, encoder.params.cluster, 1, sends=True)
        (whole,) = executor._blocks(range(len(views.index.keys)), views, 10_000)
    assert sum(map(len, whole.data)) == sum(Path("photos", path).stat().st_size for path in manifest.path)
    block = make_block(3)
    block["data"] = [Path("photos", path).read_bytes() for path in block.path]
    worker = Worker(make_job())
    monkeypatch.setattr(worker._source, "read", lambda *_: pytest.fail("the source is read"))
    found = worker(block)
    assert (found["features"][np.argsort(found["view"])] == np.load(paths.FEATURES["train"])[:3]).all()


def test_a_worker_says_which_example_it_cannot_use(here, versions):
    block = make_block(3)
    block.loc[1, "file_hash"] = "0" * 32
    found = Worker(make_job())(block)
    assert found["view"].tolist() == [-1]
    assert found["features"].shape[0] == 1
    assert f"{block.path[1]} has changed since prepare ran" in found["error"][0]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [({"inputs": {"size": 7}}, "computes other features"), ({"versions": {"Python": "4"}}, "with other versions")],
)
def test_a_worker_on_a_machine_that_joined_later_refuses(here, versions, changes, problem):
    found = Worker(make_job(**changes))(make_block(2))
    assert found["view"].tolist() == [-1]
    assert problem in found["error"][0]


def test_a_worker_without_gpus_sees_none(here, versions, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    job = make_job()
    job.encoder()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "-1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    job.params["cluster"]["gpus_per_worker"] = 1.0
    job.encoder()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_worker_runs_on_jax_if_params_ask_for_it(here, versions, monkeypatch):
    monkeypatch.setattr(keras_backend, "name", "tensorflow")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    job = make_job()
    job.params["extract"]["engine"] = "jax"
    job.encoder()
    assert keras_backend.name == "jax"


def test_machines_that_fit_give_one_fingerprint(here, versions):
    machine = ray_worker.describe_machine(make_job())
    assert (machine.error, machine.unread) == (None, None)
    assert ray_executor.check_machines([machine, machine]) == machine.facts["inputs"]
    (store,) = paths.cache_path("features").glob("*.sqlite")
    assert store.stem == fingerprint(machine.facts["inputs"])  # it goes on with what one machine has computed


@pytest.mark.parametrize("package", ["Python", "keras", "code of headstart"])
def test_a_machine_with_other_versions_is_refused_by_name(here, versions, package):
    job = make_job(versions={**versions, package: "other"})
    machine = replace(ray_worker.describe_machine(job), name="node-7 at 10.0.0.7")
    with pytest.raises(UserError) as error:
        ray_executor.check_machines([Machine("a", facts={"inputs": {}}), machine])
    expected = f"cluster: node-7 at 10.0.0.7 has {package} {versions[package]}, not other as here"
    assert str(error.value).startswith(expected)


def test_a_machine_with_other_features_is_refused_by_name():
    one, other = (Machine(name, facts={"inputs": {"size": 32, "computing": name}}) for name in ("a at 1", "b at 2"))
    with pytest.raises(UserError, match=r"cluster: a at 1 and b at 2 compute different features \(computing\)"):
        ray_executor.check_machines([one, other])


def test_a_machine_that_cannot_read_the_data_says_so(here, versions):
    job = make_job()
    job.params["data"]["source"] = "/nowhere/photos"
    machine = ray_worker.describe_machine(job)
    assert machine.error is None
    assert "/nowhere/photos" in machine.unread


def test_examples_are_sent_if_they_are_few(here, capsys, monkeypatch):
    params, manifest, unread = load_params(), load_manifest(), [Machine("b at 2", unread="not there")]
    ray_executor.check_sendable(params, manifest, unread)
    assert "b at 2 cannot read data.source 'photos': examples are sent along" in capsys.readouterr().out
    monkeypatch.setattr(ray_executor, "MOST_BYTES", 100)
    with pytest.raises(UserError, match="are too many to send along"):
        ray_executor.check_sendable(params, manifest, unread)
    elsewhere = params.model_copy(update={"data": params.data.model_copy(update={"source": "s3://bucket/photos"})})
    with pytest.raises(UserError, match=r"b at 2 cannot read data.source 's3://bucket/photos': not there"):
        ray_executor.check_sendable(elsewhere, manifest, unread)


def fake_ray(*resources: dict[str, float]) -> SimpleNamespace:
    nodes = [{"Alive": True, "Resources": each, "NodeManagerAddress": "10.0.0.1"} for each in resources]
    return SimpleNamespace(nodes=lambda: nodes)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 12),
        ({"cpus_per_worker": 3}, 3),  # 2 on one machine, 1 on the other
        ({"gpus_per_worker": 1.0}, 1),
        ({"gpus_per_worker": 0.5}, 2),
        ({"gpus_per_worker": 0.2}, 5),
        ({"gpus_per_worker": 0.6}, 1),
        ({"workers": 5}, 5),
    ],
)
def test_workers_fill_the_cluster_or_are_as_many_as_asked_for(settings, expected):
    cluster = load_params(ROOT / "params.yaml").cluster.model_copy(update={"address": "auto", **settings})
    assert ray_cluster.count_workers(fake_ray({"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0}), cluster) == expected


@pytest.mark.parametrize("settings", [{"workers": 13}, {"gpus_per_worker": 2.0}, {"cpus_per_worker": 9}])
def test_more_workers_than_there_is_room_for_are_refused(settings):
    cluster = load_params(ROOT / "params.yaml").cluster.model_copy(update={"address": "auto", **settings})
    with pytest.raises(UserError, match=r"params.yaml: cluster.workers .*: the cluster has room for"):
        ray_cluster.count_workers(fake_ray({"CPU": 8.0, "GPU": 1.0}, {"CPU": 4.0}), cluster)


def test_without_ray_one_message_says_so(here, monkeypatch):
    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    write_params(Path("params.yaml"), Path("start.yaml"), **{"cluster.address": "here"})
    with pytest.raises(UserError, match=r"cluster.address needs Ray, the extra `ray`: make setup EXTRAS=ray"):
        run_stages("extract")


@pytest.mark.parametrize("address", ["ray", "ray://h:1", "host", "host:port", "http://host:1", "", 7, None])
def test_addresses_that_name_no_cluster_are_refused(address, tmp_path):
    write_params(tmp_path / "params.yaml", **{"cluster.address": address})
    with pytest.raises(UserError, match=r"cluster.address must be local, here, auto or HOST:PORT"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("share", [1.5, -1, 65])
def test_a_worker_has_a_share_of_one_gpu_or_whole_ones(share, tmp_path):
    write_params(tmp_path / "params.yaml", **{"cluster.gpus_per_worker": share})
    with pytest.raises(UserError, match=r"cluster.gpus_per_worker must be"):
        load_params(tmp_path / "params.yaml")


def test_a_cluster_that_is_not_there_is_reported_at_once(monkeypatch):
    monkeypatch.setattr(ray_cluster, "_import_ray", lambda: SimpleNamespace())
    cluster = load_params(ROOT / "params.yaml").cluster.model_copy(update={"address": "127.0.0.1:9"})
    with (
        pytest.raises(UserError, match=r"cluster.address 127.0.0.1:9: Ray cannot be reached \(.*refused"),
        ray_cluster.connect(cluster),
    ):
        pass


@pytest.mark.parametrize(
    ("address", "problem"), [("local", "is local: no cluster to check"), ("auto", "reading.json does not exist; run")]
)
def test_a_check_says_what_it_needs(tmp_path, monkeypatch, address, problem):
    monkeypatch.chdir(tmp_path)
    write_params(Path("params.yaml"), **{"cluster.address": address})
    with pytest.raises(UserError, match=problem):
        ray_executor.check_cluster()


def test_errors_of_ray_are_one_line_about_the_cause():
    error = RuntimeError("\x1b[36mray::Worker()\x1b[39m (pid=7)\n  File x, line 1\nKeyError: 'seed'\n")
    assert ray_cluster.explain(error) == "RuntimeError: KeyError: 'seed'"


def test_what_reads_ahead_ends_with_its_reader():
    """Else it would use Ray after its end."""
    ray = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(gcs_address="127.0.0.1:9"))
    before, found = threading.active_count(), ray_cluster.while_alive(ray, iter(range(100)))
    assert next(found) == 0
    assert threading.active_count() == before + 1
    found.close()
    assert threading.active_count() == before


def test_a_head_that_is_gone_is_noticed(monkeypatch):
    """Ray waits for it, and ends the process after a minute."""
    monkeypatch.setattr(ray_cluster, "SECONDS_WITHOUT_HEAD", 1)
    ray = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(gcs_address="127.0.0.1:9"))

    def items() -> Iterator[int]:
        yield 1
        time.sleep(60)

    found = ray_cluster.while_alive(ray, items())
    assert next(found) == 1
    with pytest.raises(ConnectionError, match=r"its head at 127.0.0.1:9 cannot be reached"):
        next(found)


# --- a real Ray


@pytest.fixture
def clean(done, tmp_path, monkeypatch) -> Path:
    """A copy of the folder whose store is empty, and in which `here` is the cluster; its features are in `known`."""
    pytest.importorskip("ray", reason="needs the extra `ray`")
    shutil.copytree(done, tmp_path / "copy", ignore=shutil.ignore_patterns("tmp"))
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    Path("features").rename("known")
    write_params(Path("params.yaml"), Path("start.yaml"), **{"cluster.address": "here", "cluster.workers": 2})
    return tmp_path / "copy"


def extract() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline", "extract"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def same_as_known() -> bool:
    return all(Path("features", file.name).read_bytes() == file.read_bytes() for file in Path("known").glob("*.npy"))


@pytest.mark.slow
def test_a_cluster_has_the_bits_of_one_machine(clean):
    process = extract()
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert "extract: 2 workers on 1 machine of the cluster here" in output
    assert same_as_known()
    again, _ = extract().communicate(timeout=300)
    assert "extract: 0 computed" in again


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(clean):
    for number in range(400):
        paint(Path(f"photos/red/more-{number}.png"), (200, 40, 40), 5000 + number)
    write_params(Path("params.yaml"), Path("start.yaml"), **{"extract.size": 320})
    run_stages("prepare", "extract")
    known = Path("features").rename("features-known")
    shutil.rmtree(paths.cache_path("features"))
    write_params(Path("params.yaml"), Path("params.yaml"), **{"cluster.address": "here", "cluster.workers": 2})
    process, killed = extract(), 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):  # a process that has just ended
            for worker in psutil.Process(process.pid).children(recursive=True):
                if not killed and any("MapWorker" in word for word in worker.cmdline()):
                    time.sleep(2)
                    worker.send_signal(signal.SIGKILL)
                    killed += 1
        time.sleep(0.2)
    assert (killed, process.returncode) == (1, 0), process.stdout.read()
    for file in known.glob("*.npy"):
        assert Path("features", file.name).read_bytes() == file.read_bytes()


LISTENING = """
import os, psutil, signal
from headstart import ray_cluster
from headstart.config import load_params
with ray_cluster.connect(load_params().cluster) as ray:
    me = psutil.Process()
    places = [place for process in (me, *me.children(recursive=True)) for place in process.net_connections()]
    found = {place.laddr.ip for place in places if place.status == "LISTEN"}
    print(sorted(found), os.environ["RAY_AUTH_MODE"], signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)
"""


@pytest.mark.slow
def test_a_ray_of_its_own_listens_to_this_machine_alone(clean, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    done = subprocess.run([sys.executable, "-c", LISTENING], capture_output=True, text=True, check=True)
    assert set(re.findall(r"'(.*?)'", done.stdout)) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, done.stdout
    assert done.stdout.endswith("token True\n")  # a stage ends by its own handler


@pytest.mark.slow
def test_the_cluster_is_checked(clean):
    done = subprocess.run(
        [sys.executable, "-m", "headstart", "cluster", "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "same versions as here, openvino on CPU, 1 cores, reads photos" in done.stdout
    assert "room for 2 workers, which give the same features" in done.stdout
