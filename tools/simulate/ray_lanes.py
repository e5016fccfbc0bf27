"""Lanes that are Ray actors, on this machine or on a cluster. A base goes into Ray's object store once.

Every machine of the cluster needs this package, torch, and the dataset under the same path. An actor or machine that is
lost costs the work under way on it, which is done again elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions

from models.state import State
from tools.simulate.pool import ExecutorError, LaneLost, Pool
from tools.simulate.worker import Assignment, Outcome, Worker, WorkerSettings

LOCAL = "local"
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


class RayLane:
    """One actor with one core, or with the GPU."""

    def __init__(self, settings: WorkerSettings, bases: Bases) -> None:
        self._settings, self._bases = settings, bases
        self._closed = False
        self._actor = self._start()

    def do(self, assignment: Assignment, base: State) -> Outcome:
        """Have it done wherever the actor is."""
        try:
            reference = self._bases.put(assignment.order.base.sha256, base)
            outcome = ray.get(self._actor.do.remote(assignment, reference))
        except _LOSSES as error:
            raise LaneLost(f"a Ray worker is gone: {str(error).strip().splitlines()[0]}") from error
        assert isinstance(outcome, Outcome)
        return outcome

    def forget(self, sha256s: Sequence[str]) -> None:
        """Of the store that all lanes share."""
        self._bases.forget(sha256s)

    def renew(self) -> None:
        """A new actor, wherever the cluster has room."""
        if self._closed:
            raise LaneLost("it was ended")
        self._actor = self._start()

    def close(self) -> None:
        """End the actor."""
        self._closed = True
        ray.kill(self._actor)

    def _start(self) -> Any:
        actor = ray.remote(Worker).options(num_cpus=1, num_gpus=1 if self._settings.device == "cuda" else 0)
        return actor.remote(self._settings)


class _RayPool(Pool):
    """Leaves the cluster when it is closed."""

    def close(self) -> None:
        """End the actors, and the connection."""
        super().close()
        ray.shutdown()


def on_ray(address: str, settings: WorkerSettings, workers: int | None = None) -> Pool:
    """An Executor of `workers` actors (None: one for each core, or each GPU) on the cluster at `address`, or "local".

    Raises ExecutorError when the cluster cannot be reached, or has no room.
    """
    with _explained(address):
        if address == LOCAL:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, configure_logging=False)
        else:
            ray.init(address=address, log_to_driver=False)
    try:
        resource = "GPU" if settings.device == "cuda" else "CPU"
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        has = int(resources.get(resource, 0))
        wanted = workers or has
        if not 1 <= wanted <= has:
            raise ExecutorError(f"{wanted} workers need {wanted} {resource}s; the Ray cluster at {address} has {has}")
        bases = Bases()
        return _RayPool("ray", settings.device, [RayLane(settings, bases) for _ in range(wanted)])
    except BaseException:
        ray.shutdown()
        raise


@contextmanager
def _explained(address: str) -> Iterator[None]:
    try:
        yield
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ExecutorError(f"no Ray cluster at {address} could be joined: {error}") from error
