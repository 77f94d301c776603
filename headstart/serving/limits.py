"""What keeps the model server within bounds: a budget of memory, limits of a request, and how memory is given back."""

from __future__ import annotations

import asyncio
import ctypes
from contextlib import suppress

MAX_BODY = 2**26  # bytes of a request
MAX_EXAMPLES = 1024  # in a request: its answer is built in memory
MAX_CONNECTIONS = 400  # of which requests are answered; twice as many are accepted at all
CHUNK_BYTES, TINY_CHUNKS = 256, 128  # of a body in chunks: the least mean size, but for a few; each costs 20 us
HEADER_SECONDS, BODY_SECONDS = 10.0, 30.0  # until all of them must have arrived
BUSY_SECONDS = 5.0  # that an example waits for memory
GRACE_SECONDS, STOP_SECONDS = 8.0, 15.0  # after SIGTERM: for requests in progress, and for everything
# Memory of a request while it is read: the bytes, the text and its parts; and of each value in its JSON.
COPIES, VALUE_BYTES = 3, 100
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # of mallopt(3)


class RequestError(Exception):
    """A request that is answered with an error; the message is for the client.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def busy() -> RequestError:
    """Return the error of a request that would be answered at another time."""
    return RequestError(503, "too many requests at once for the memory of this server; try again later")


class Budget:
    """Bytes that all requests share; to be used from one event loop.

    Attributes:
        limit: bytes that can be taken at once.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._taken = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []

    def take(self, count: int) -> None:
        """Take bytes; give them back with `release`.

        Raises:
            RequestError: 503 if so many are not free.
        """
        if count > self.limit - self._taken:
            raise busy()
        self._taken += count

    async def wait(self, count: int, seconds: float) -> None:
        """Take bytes as soon as so many are free; smaller amounts may be taken in between.

        Raises:
            RequestError: 503 if that takes too long.
        """
        if count <= self.limit - self._taken:
            self._taken += count
            return
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append((count, turn))
        deadline = loop.call_later(seconds, _give_up, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and not turn.exception():  # it was given just now
                self.release(count)
            raise
        finally:
            deadline.cancel()

    def release(self, count: int) -> None:
        """Give bytes back."""
        self._taken -= count
        waiting, self._waiting = self._waiting, []
        for wanted, turn in waiting:
            if turn.done():
                continue
            if wanted <= self.limit - self._taken:
                self._taken += wanted
                turn.set_result(None)
            else:
                self._waiting.append((wanted, turn))


def _give_up(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(busy())


class Claim:
    """What a request has taken of a budget; all of it is given back when the `with` block ends."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self._taken = budget, 0

    def grow(self, count: int) -> None:
        """Take more bytes.

        Raises:
            RequestError: 413 if the whole is more than the budget, 503 if so much is not free.
        """
        if self._taken + count > self._budget.limit:
            raise RequestError(413, "the request takes more memory than this server has for all of them; divide it")
        self._budget.take(count)
        self._taken += count

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *exception: object) -> None:
        self._budget.release(self._taken)


def return_memory() -> None:
    """Make glibc give large blocks back to the system when they are freed; elsewhere this does nothing.

    By default it keeps blocks of up to 32 MiB after the first ones were freed, in as many arenas as there are threads:
    https://www.gnu.org/software/libc/manual/html_node/Malloc-Tunable-Parameters.html
    """
    with suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, 2**22)
        mallopt(_M_ARENA_MAX, 4)
