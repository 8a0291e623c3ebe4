"""`RayPool`: rows as tasks of a Ray cluster, each with the processors and the GPU that it asks for. The only importer of ray.

Files are reached by a path that all machines share, or by URL.
When a task's process or machine dies, Ray starts it again elsewhere. It first looks whether the attempt before it has finished the output
(`row.work_on`), so nothing is written twice or by halves.
When a batch is killed, Ray ends its tasks. The next batch waits for those whose lock it can see: on this machine, and on others where the
manifest's folder is shared with locks.
"""

from __future__ import annotations

import os
import platform
import signal
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from lipdub import __version__
from lipdub.batch.local import STOPPING_S, Teller, attempt
from lipdub.batch.lock import row_lock
from lipdub.batch.loop import Event, Finished, Lost, Progress
from lipdub.batch.row import Task, Work, dub_task
from lipdub.batch.rows import RowResult, one_line
from lipdub.errors import ClusterFailed
from lipdub.stages import ENDING

SYSTEM_RETRIES: Final = 3
"""How often Ray starts a task again whose process or machine has died."""
TASK_CPUS: Final = 2
"""Processors of a row that does not say how many threads it wants."""
_LOOK_S: Final = 10.0
_ANSWER_S: Final = 2.0
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # no report to Ray's makers
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray asks for to stop warning about what it will do some day
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",  # paragraphs on standard output about each worker that died and is replaced
}
"""Set where the user has not set them."""
_LOCAL_STORE_BYTES: Final = 128 * 2**20
"""Rows travel as paths: next to nothing has to be kept between tasks."""


class RayPool:
    """A Ray cluster as a pool. A program that is connected already stays so."""

    shares_cache = False

    def __init__(self, address: str, *, devices: Iterable[str] = (), work: Work | None = None) -> None:
        """Connect to the cluster at `address`: ``auto``, ``local`` (a new one on this machine), ``ray://host:10001``, ``host:6379``.

        devices: that the rows will ask for. work: for tests.

        Raises ClusterFailed: ray is not installed, the cluster cannot be reached, or it lacks a GPU that a row asks for.
        """
        self._ray = _ray()
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _connect(self._ray, address)
        self._work = work or dub_task
        self._task_of: dict[Any, int] = {}
        self._board: Any = None
        self._asked: Any = None
        self._looked_s = 0.0
        self._look()
        if "cuda" in devices and not self._gpus:
            self.stop()
            raise ClusterFailed(f"rows ask for device cuda, but the cluster at '{address}' has no GPU; take --device auto, or add one")
        self._do = self._ray.remote(max_retries=SYSTEM_RETRIES, retry_exceptions=False)(_do)
        self._board = self._ray.remote(num_cpus=0, max_restarts=-1)(_Board).remote()

    def free(self) -> int:
        """How many more tasks the cluster is to have at hand: twice as many as it can run, so that none of its machines waits."""
        if time.monotonic() - self._looked_s > _LOOK_S:
            self._look()
        return max(0, self._at_hand - len(self._task_of))

    def start(self, task: Task) -> None:
        """Submit the task."""
        options = task.row.options
        cpus = min(options.threads or TASK_CPUS, self._most_cpus)
        gpus = 1 if options.device == "cuda" or (options.device == "auto" and self._gpus) else 0
        # Relative paths would begin at another folder there.
        places = {name: getattr(task.row, name) for name in ("video", "speech", "output", "report")}
        places = {name: place.absolute() if isinstance(place, Path) else place for name, place in places.items()}
        row = replace(task.row, **places, options=replace(options, threads=cpus, model=_model_everywhere(options.model)))
        do = self._do.options(num_cpus=cpus, num_gpus=gpus, name=f"lipdub line {row.line}")
        self._task_of[do.remote(replace(task, row=row), self._work, self._board, __version__)] = task.number

    def events(self, timeout_s: float) -> Iterator[Event]:
        """Progress and answers."""
        ray = self._ray
        if references := list(self._task_of):
            ray.wait(references, num_returns=1, timeout=timeout_s)
            ended, _ = ray.wait(references, num_returns=len(references), timeout=0)
            for reference in ended:
                yield self._answer(reference)
        # Progress is for those who look on: where its actor is gone, nothing else is.
        with suppress(ray.exceptions.RayError):
            # An answer that is late is waited for the next time: what it tells is told once.
            self._asked = self._asked or self._board.take.remote()
            if ray.wait([self._asked], timeout=_ANSWER_S)[0]:
                asked, self._asked = self._asked, None
                for number, said in ray.get(asked).items():
                    yield Progress(number, *said)

    def stop(self) -> None:
        """Cancel all tasks, politely first, and let go of the cluster."""
        ray = self._ray
        references = list(self._task_of)
        self._task_of = {}
        with suppress(ray.exceptions.RayError, ConnectionError):
            for force in (False, True):
                for reference in references:
                    ray.cancel(reference, force=force)
                if references:
                    _, references = ray.wait(references, num_returns=len(references), timeout=STOPPING_S)
            if self._board is not None and ray.is_initialized():
                ray.kill(self._board)
                self._board = None
        if self._ours and ray.is_initialized():
            with suppress(ray.exceptions.RayError, ConnectionError):
                ray.shutdown()

    def _answer(self, reference: Any) -> Event:
        ray, number = self._ray, self._task_of.pop(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.WorkerCrashedError:
            return Lost(number, f"the processes that Ray started for it died, {1 + SYSTEM_RETRIES} in all; look into Ray's logs")
        except ray.exceptions.OutOfMemoryError:
            return Lost(number, "there was not enough memory for it on the cluster; give the row more threads, so that fewer run at once")
        except ray.exceptions.RayError as error:
            return Lost(number, f"the cluster gave it up: {type(error).__name__}: {one_line(error)[:300]}")
        except ImportError as error:
            return Lost(number, f"lipdub is not installed alike on the cluster's machines: {one_line(error)[:200]}")
        assert isinstance(result, RowResult)
        return Finished(number, result)

    def _look(self) -> None:
        """What the cluster has now; it may grow."""
        nodes = [node.get("Resources", {}) for node in self._ray.nodes() if node.get("Alive")]
        cpus = [int(node.get("CPU", 0)) for node in nodes]
        self._most_cpus = max(1, *cpus, 1)
        self._gpus = sum(int(node.get("GPU", 0)) for node in nodes)
        self._at_hand = max(2, 2 * (sum(cpus) // min(TASK_CPUS, self._most_cpus)))
        self._looked_s = time.monotonic()


def _do(task: Task, work: Work, board: Any, version: str) -> RowResult:
    """On a machine of the cluster: the result of a task."""
    if version != __version__:
        why = f"{platform.node()} has lipdub {__version__}, this batch is of {version}; install the same version everywhere"
        return RowResult(task.row, None, why, 0.0)
    with row_lock(task.lock, task.number):
        return attempt(task, work, Teller(lambda *said: board.tell.remote(task.number, said)))


class _Board:
    """An actor on which tasks write how far they are."""

    def __init__(self) -> None:
        self._said: dict[int, tuple[str, int, int | None]] = {}

    def tell(self, number: int, said: tuple[str, int, int | None]) -> None:
        """Note the progress of a row."""
        self._said[number] = said

    def take(self) -> dict[int, tuple[str, int, int | None]]:
        """What was noted since the last time."""
        said, self._said = self._said, {}
        return said


def _ray() -> Any:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise ClusterFailed('--ray needs Ray; install it with: pip install "lipdub[ray]"') from error
    return ray


def _connect(ray: Any, address: str) -> None:
    _knock(os.environ.get("RAY_ADDRESS", "") if address == "auto" else address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _LOCAL_STORE_BYTES}
    with _signals_kept():
        try:
            ray.init(address=address, **options)
        except (OSError, ValueError, RuntimeError, TimeoutError) as error:
            hint = "start one with 'ray start --head', or take --ray local" if address == "auto" else "check the address"
            raise ClusterFailed(f"cannot reach a Ray cluster at '{address}': {one_line(error)[:200]}; {hint}") from error


def _knock(address: str) -> None:
    """Raise ClusterFailed where nobody listens at ``host:port``: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
    except (OSError, OverflowError) as error:
        raise ClusterFailed(f"cannot reach a Ray cluster at '{address}': {error}; check the address, and that the cluster runs") from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it connects; here the command line has its own answer to it."""
    changeable = ENDING if threading.current_thread() is threading.main_thread() else ()
    kept = {number: signal.getsignal(number) for number in changeable}
    try:
        yield
    finally:
        for number, handler in kept.items():
            if handler is not None:
                signal.signal(number, handler)


def _model_everywhere(model: str) -> str:
    """A bundle's name stays; its folder becomes absolute."""
    from lipdub.bundles import bundle

    folder = Path(model).expanduser()
    return model if model in bundle.available() or not folder.is_dir() else str(folder.absolute())
