"""Answers to requests: examples are loaded by threads within a budget of memory and predicted in batches."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from headstart.errors import ItemError
from headstart.machine import cores
from headstart.serving.answer import format_answer
from headstart.serving.batching import MAX_BATCH, Batcher
from headstart.serving.limits import BUSY_SECONDS, Budget, RequestError
from headstart.serving.request import Example, read_examples

if TYPE_CHECKING:
    from headstart.modalities import Modality
    from headstart.serving.network import Network

T = TypeVar("T")
Loaded = tuple[np.ndarray, str]  # with a remark, see `Modality.load_with_remark`
TOO_LARGE = ("too_large", "too_long", "bomb")  # reasons that are answered with 413


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

    async def answer(self, body: bytearray) -> str:
        """Return the JSON that answers a request; `body` is emptied on the way.

        Raises:
            RequestError: 400 if the request or an example in it is wrong, 413 if one is too large for this server,
                503 if there is no memory for it now.
        """
        examples = deque(await self._in_thread(read_examples, body, self._modality, self._size))
        count, texts = len(examples), list[str]()
        problems: dict[int, ItemError] = {}
        turn = asyncio.Semaphore(cores())  # examples of one request wait for each other as long as it takes
        while examples:  # some at a time, so that other requests have their turn
            start = count - len(examples)
            some = [examples.popleft() for _ in range(min(MAX_BATCH, len(examples)))]
            for place, answer in enumerate(await _gather([self._predict(example, turn) for example in some]), start):
                if isinstance(answer, ItemError):
                    problems[place] = answer
                elif not problems:
                    probabilities, remark = answer
                    row = format_answer(self._classes, probabilities, self._modality.noun, remark)
                    texts.append(json.dumps(row))
        if problems:
            raise self._error(problems, count)
        return f'{{"predictions": [{", ".join(texts)}]}}'

    async def _predict(self, example: Example | ItemError, turn: asyncio.Semaphore) -> Loaded | ItemError:
        """Return the probabilities (n_classes,) of an example and what is odd about it, or what is wrong with it.

        `turn` is held to load it.
        """
        if isinstance(example, ItemError):
            return example
        if example.memory > self._loading.limit:
            needed, limit = (count / 2**20 for count in (example.memory, self._loading.limit))
            detail = f"too large: loading it takes {needed:,.0f} MiB of memory, {limit:,.0f} MiB are allowed"
            return ItemError("too_large", detail)
        loop = asyncio.get_running_loop()
        with ExitStack() as after:
            async with turn:
                await self._loading.wait(example.memory, BUSY_SECONDS)
                loading = self._threads.submit(self._load, example.data)
                # When it has ended indeed: a thread goes on if its request is given up.
                after.callback(loading.add_done_callback, lambda _: self._give_back(loop, example.memory))
                loaded = await asyncio.wrap_future(loading)
            return loaded if isinstance(loaded, ItemError) else (await self._batcher(loaded[0]), loaded[1])

    def _give_back(self, loop: asyncio.AbstractEventLoop, count: int) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has ended
            loop.call_soon_threadsafe(self._loading.release, count)

    def _load(self, data: bytes) -> Loaded | ItemError:
        try:
            return self._modality.load_with_remark(data, self._size)
        except ItemError as error:
            return error

    async def _in_thread(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.wrap_future(self._threads.submit(function, *arguments))

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
