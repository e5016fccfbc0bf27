"""Lanes that are Ray actors, on this machine or on a cluster. A base goes into Ray's object store once.

Every machine of the cluster needs this package, torch, and the dataset under the same path. An actor or machine that is
lost costs the work under way on it, which is done again elsewhere. Bits are those of one machine only where all
machines have the same kind of processor and the same torch.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from models.state import State
from tools.simulate.pool import ExecutorError, LaneLost, Pool, started
from tools.simulate.worker import Assignment, Outcome, Worker, WorkerSettings

LOCAL = "local"
#: An actor imports torch before it answers; one that has not answered by then has found no room.
START_LIMIT_S = 300.0
#: What says that an actor, its machine or what it was given is gone. A fault of the work itself is in its outcome.
_LOSSES = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.ObjectLostError,
    ray.exceptions.OutOfMemoryError,
)


class Bases:
    """The models in the object store, by hash; shared by all lanes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._references: dict[str, Any] = {}

    def put(self, sha256: str, base: State) -> Any:
        """A reference to `base`, which is put there at its first use."""
        with self._lock:
            if sha256 not in self._references:
                self._references[sha256] = ray.put(base)
            return self._references[sha256]

    def forget(self, sha256s: Sequence[str]) -> None:
        """Let Ray free them."""
        with self._lock:
            for sha256 in sha256s:
                self._references.pop(sha256, None)


class RayWorker(Worker):
    """A worker that says when it is there."""

    def ping(self) -> bool:
        """Yes."""
        return True


class RayLane:
    """One actor with one core, or with the GPU. `ready` waits until it is there."""

    def __init__(self, settings: WorkerSettings, bases: Bases, limit_s: float = START_LIMIT_S) -> None:
        self._settings, self._bases, self._limit_s = settings, bases, limit_s
        self._closed = False
        self._actor, self._there = self._start()

    def ready(self) -> None:
        """Wait for the actor's first word. Raises LaneLost when there is none in time, ExecutorError."""
        with _translated():
            ray.get(self._there, timeout=self._limit_s)

    def do(self, assignment: Assignment, base: State) -> Outcome:
        """Have it done wherever the actor is."""
        with _translated():
            reference = self._bases.put(assignment.order.base.sha256, base)
            outcome = ray.get(self._actor.do.remote(assignment, reference))
        assert isinstance(outcome, Outcome)
        return outcome

    def forget(self, sha256s: Sequence[str]) -> None:
        """Of the store that all lanes share."""
        self._bases.forget(sha256s)

    def renew(self) -> None:
        """A new actor, wherever the cluster has room. Raises LaneLost when it has none."""
        if self._closed:
            raise LaneLost("it was ended")
        self._actor, self._there = self._start()
        try:
            self.ready()
        except ExecutorError as error:
            raise LaneLost(str(error)) from error

    def close(self) -> None:
        """End the actor."""
        self._closed = True
        ray.kill(self._actor)

    def _start(self) -> tuple[Any, Any]:
        kind = ray.remote(RayWorker).options(num_cpus=1, num_gpus=1 if self._settings.device == "cuda" else 0)
        actor: Any = kind.remote(self._settings)
        return actor, actor.ping.remote()


class _RayPool(Pool):
    """Leaves the cluster when it is closed."""

    def close(self) -> None:
        """End the actors, and the connection."""
        super().close()
        ray.shutdown()


def on_ray(address: str, settings: WorkerSettings, workers: int | None = None) -> Pool:
    """An Executor of `workers` actors (None: one for each core, or each GPU, that is free) on the cluster at `address`,
    or "local".

    Raises ExecutorError when the cluster cannot be reached, or has no room.
    """
    with _explained(address):
        if address == LOCAL:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
        else:
            ray.init(address=address, log_to_driver=False)
    try:
        with _translated():
            lanes = _lanes(address, settings, workers)
        return _RayPool("ray", settings.device, lanes, settings.used_threads)
    except BaseException:
        ray.shutdown()
        raise


def _lanes(address: str, settings: WorkerSettings, workers: int | None) -> list[RayLane]:
    """Lanes whose actors have all answered."""
    resource = "GPU" if settings.device == "cuda" else "CPU"
    free: dict[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
    has = int(free.get(resource, 0))
    wanted = workers or has
    if not 1 <= wanted <= has:
        wants = f"{wanted or 1} workers need {wanted or 1} {resource}s"
        raise ExecutorError(f"{wants}; the Ray cluster at {address} has {has} that are free")
    bases = Bases()
    lanes = started(lambda: RayLane(settings, bases), wanted)
    try:
        for lane in lanes:
            lane.ready()
    except LaneLost as error:
        raise ExecutorError(f"the Ray cluster at {address} starts no {wanted} workers: {error}") from error
    return lanes


@contextmanager
def _translated() -> Iterator[None]:
    """Every error of Ray: as a lane that was lost, or as the end of all work with what to change."""
    try:
        yield
    except _LOSSES as error:
        raise LaneLost(f"a Ray worker is gone: {_first_line(error)}") from error
    except ray.exceptions.GetTimeoutError as error:
        raise LaneLost("a Ray worker did not start in time; see `ray status` for what else is running") from error
    except (ray.exceptions.ObjectStoreFullError, ray.exceptions.OutOfDiskError) as error:
        full = "Ray's object store is full; start the cluster with a larger --object-store-memory"
        raise ExecutorError(f"{full}: {_first_line(error)}") from error
    except ray.exceptions.RayError as error:
        raise ExecutorError(f"Ray failed: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of a node that does not come up, Ray raises no more than that
        raise ExecutorError(f"no Ray cluster at {address} could be joined: {error}") from error
