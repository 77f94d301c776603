"""Transfers from addresses, bounded in bytes, in seconds and in where a server may send us."""

from __future__ import annotations

import errno
import ipaddress
import socket
import threading
from collections.abc import Callable
from concurrent import futures
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from fsspec.callbacks import Callback

from headstart.errors import ItemError

if TYPE_CHECKING:
    import aiohttp

MAX_STREAM_BYTES = 2**34  # of one file, unless the storage announces more
MAX_SECONDS = 86400.0  # of one transfer
SLOW_BYTES, SLOW_SECONDS = 2**16, 60.0  # a transfer that brings less than that in that time is given up
NAT64 = ipaddress.ip_network("64:ff9b::/96")

T = TypeVar("T")


class _Progress(Callback):
    """Counts the bytes of a transfer, and ends it if they are too many or nobody waits for it any more."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self._limit, self.abandoned = limit, False

    def set_size(self, size: int | None) -> None:
        self.relative_update(0)  # before the local file is opened

    def relative_update(self, inc: int = 1) -> None:
        self.value += inc
        if self.value > self._limit:
            raise ItemError("too_large", f"larger than {self._limit / 2**30:.3g} GiB")
        if self.abandoned:
            raise ItemError("unreadable", "too slow")


def bounded(transfer: Callable[[Callback], T], seconds: float | None = None, limit: float = MAX_STREAM_BYTES) -> T:
    """Return what `transfer` returns or raises.

    It runs in a thread of its own, which is left behind if it hangs: not every driver has timeouts, and a server that
    sends a byte now and then defeats those that have.

    Args:
        transfer: is given a callback of fsspec, which it tells about the bytes that arrive.
        seconds: how long it may go without SLOW_BYTES more; by default SLOW_SECONDS.
        limit: bytes that may arrive.

    Raises:
        ItemError: too_large; unreadable if it is too slow.
    """
    progress, window = _Progress(limit), seconds or SLOW_SECONDS
    future: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            future.set_result(transfer(progress))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    for _ in range(max(1, round(MAX_SECONDS / window))):
        before = progress.value
        if futures.wait([future], window).done:
            return future.result()
        if progress.value - before < SLOW_BYTES:
            progress.abandoned = True
            raise ItemError("unreadable", f"no answer within {window:g} s, or less than {SLOW_BYTES >> 10} KiB")
    progress.abandoned = True
    raise ItemError("unreadable", f"not complete after {MAX_SECONDS / 3600:g} hours")


def is_inside(address: str) -> bool:
    """Whether an IP address is of this machine or of a private network: loopback, link-local, private and the like."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):  # some of them stand for an IPv4 address
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner:
            return not inner.is_global
    return not ip.is_global


def http_options(address: str) -> dict[str, Any]:
    """Return options for fsspec's file system of HTTP: limits of time, and where redirects may lead."""
    from aiohttp import ClientTimeout  # takes a fifth of a second

    timeout = ClientTimeout(total=MAX_SECONDS, sock_connect=SLOW_SECONDS, sock_read=SLOW_SECONDS)
    options: dict[str, Any] = {"client_kwargs": {"timeout": timeout}}
    return options if _leads_inside(address) else options | {"get_client": _public_session}


def _leads_inside(address: str) -> bool:
    """Whether the host of an address is this machine or in a private network; False if there is no such host."""
    try:
        found = socket.getaddrinfo(urlsplit(address).hostname, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return False
    return any(is_inside(str(info[4][0])) for info in found)


async def _public_session(**options: Any) -> aiohttp.ClientSession:
    """Open a session that connects to public addresses only, wherever a server redirects it to.

    What a name leads to is judged when it is connected to, so that it cannot change in between.
    """
    from aiohttp import ClientSession, TCPConnector

    if options.get("trust_env"):  # then a proxy connects
        return ClientSession(**options)
    return ClientSession(connector=TCPConnector(socket_factory=_public_socket), **options)


def _public_socket(address: Any) -> socket.socket:
    family, kind, protocol, _, where = address
    if is_inside(where[0]):
        reason = f"it leads to {where[0]}, this machine or a private network, as only a source there may"
        raise OSError(errno.EACCES, reason)
    return socket.socket(family, kind, protocol)
