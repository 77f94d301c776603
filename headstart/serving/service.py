"""Answers to requests: examples are loaded by threads within a budget of memory and predicted in batches."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from headstart.errors import ItemError
from headstart.machine import cores
from headstart.serving.batching import MAX_BATCH, Batcher
from headstart.serving.limits import Budget, RequestError
from headstart.serving.request import Example, read_examples

if TYPE_CHECKING:
    from headstart.modalities import Modality
    from headstart.serving.network import Network

T = TypeVar("T")
LOADED_BATCHES = 4  # of examples that wait for the network at most
TOO_LARGE = ("too_large", "bomb")  # reasons that are answered with 413


class Service:
    """The model behind the server. To be used from one event loop.

    Args:
        classes: in the order of the network's outputs.
        size: of an example, as `extract.size` counts it.
        memory: bytes that all requests may take: half for themselves, half for examples that are being loaded.
    """

    def __init__(self, network: Network, classes: list[str], modality: Modality, size: int, memory: int) -> None:
        self.bodies, self._loading = Budget(memory // 2), Budget(memory // 2)
        self._classes, self._modality, self._size = classes, modality, size
        self._batcher = Batcher(network)
        self._threads = ThreadPoolExecutor(cores(), "load")
        self._free = asyncio.Semaphore(LOADED_BATCHES * MAX_BATCH)
        self._turn = asyncio.Lock()

    async def answer(self, body: bytearray) -> str:
        """Return the JSON that answers a request; `body` is emptied on the way.

        Raises:
            RequestError: 400 if the request or an example in it is wrong, 413 if one is too large for this server,
                503 if there is no memory for it now.
        """
        examples = await self._in_thread(read_examples, body, self._modality, self._size)
        texts: list[str] = []
        problems: dict[int, ItemError] = {}
        for start in range(0, len(examples), MAX_BATCH):
            some = examples[start : start + MAX_BATCH]
            async with self._turn:  # one request at a time, else two could wait for each other
                for _ in some:
                    await self._free.acquire()
            try:
                loaded = await _gather([self._load(example) for example in some])
                bad = {start + place: one for place, one in enumerate(loaded) if isinstance(one, ItemError)}
                problems.update(bad)
                if not problems:  # else the answer is known, but for the names of other bad ones
                    rows = await _gather([self._batcher(array) for array in loaded])
                    texts += [json.dumps(self._row(row)) for row in rows]
            finally:
                for place in range(start, start + len(some)):
                    examples[place] = ItemError("done", "done")  # frees its file
                    self._free.release()
        if problems:
            raise self._error(problems, len(examples))
        return f'{{"predictions": [{", ".join(texts)}]}}'

    async def _load(self, example: Example | ItemError) -> np.ndarray | ItemError:
        if isinstance(example, ItemError):
            return example
        if example.memory > self._loading.limit:
            needed, limit = (count / 2**20 for count in (example.memory, self._loading.limit))
            detail = f"too large: loading it takes {needed:,.0f} MiB of memory, {limit:,.0f} MiB are allowed"
            return ItemError("too_large", detail)
        await self._loading.wait(example.memory)
        loop = asyncio.get_running_loop()

        def give_back(_: Future[Any]) -> None:  # when it has ended indeed: a thread goes on if its request is given up
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._loading.release, example.memory)

        return await self._in_thread(_try_to_load, self._modality, example.data, self._size, then=give_back)

    async def _in_thread(
        self, function: Callable[..., T], *arguments: Any, then: Callable[[Future[Any]], None] | None = None
    ) -> T:
        future = self._threads.submit(function, *arguments)
        if then:
            future.add_done_callback(then)
        return await asyncio.wrap_future(future)

    def _row(self, probabilities: np.ndarray) -> dict[str, Any]:
        values = probabilities.tolist()
        best = int(np.argmax(probabilities))
        named = dict(zip(self._classes, values, strict=True))
        return {"label": self._classes[best], "probability": values[best], "probabilities": named}

    def _error(self, problems: dict[int, ItemError], count: int) -> RequestError:
        column = self._modality.column
        lines = [f"{column} {place} (counted from 0, of {count}): {error}" for place, error in problems.items()]
        large = any(error.reason in TOO_LARGE for error in problems.values())
        return RequestError(413 if large else 400, "; ".join(lines))

    def close(self) -> None:
        """Start nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._batcher.close()


async def _gather(waiting: list[Any]) -> list[Any]:
    """Wait for all; if one fails, or the caller is cancelled, the others are cancelled."""
    tasks = [asyncio.ensure_future(one) for one in waiting]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _try_to_load(modality: Modality, data: bytes, size: int) -> np.ndarray | ItemError:
    try:
        return modality.load(data, size)
    except ItemError as error:
        return error
