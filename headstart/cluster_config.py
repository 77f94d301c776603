"""The section cluster of params.yaml, see headstart/config.py."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from headstart.validation import Float, Int, Rule, Section


def _check_address(value: Any) -> Any:
    if value in ("local", "here", "auto"):
        return value
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if not colon or not host or "/" in host or not port.isdecimal():
        raise ValueError
    return value


def _check_share(value: float) -> float:
    if value > 1 and value != int(value):
        raise ValueError(f"must be a share of one GPU in [0, 1], or a whole number, got {value}")
    return value


class Cluster(Section):
    """Where `extract` runs. No stage reads it as a param, so that a change re-runs nothing: results are the same."""

    address: Annotated[str, BeforeValidator(_check_address), Rule("local, here, auto or HOST:PORT")]
    """local: this process; here: a Ray on this machine that ends with the stage; auto: the Ray that runs on this
    machine, as a node of a cluster; HOST:PORT: the head of a cluster that this machine has joined. All but local need
    the extra `ray`."""
    workers: Annotated[Int, Field(ge=1, le=10_000)] | None
    """Processes that extract at once; null: as many as the CPUs and GPUs of the cluster allow."""
    cpus_per_worker: Annotated[Int, Field(ge=1, le=1024)]
    """CPU cores of each."""
    gpus_per_worker: Annotated[
        Float, Field(ge=0, le=64), AfterValidator(_check_share), Rule("a share of one GPU in [0, 1], or a whole number")
    ]
    """GPUs of each; 0.5: two workers share one."""
