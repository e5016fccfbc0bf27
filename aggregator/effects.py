"""The heavy work behind the coordinator's actions, off the event loop. Knows blobs and tensors, not MQTT.

Averaging, by whatever rules a job asks for (`aggregator.robust`), runs in one thread, in the order asked for, so that
the same arrivals give the same bits. What rules must keep of a round's updates lies in the store's folder. What needs
torch (new weights, ONNX export) runs in a child process that gives its memory back.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from aggregator.accountant import privacy_statement
from aggregator.attribution import PartWork
from aggregator.coordinator.actions import Accumulate, Average, Export, ExportSplit, OpenedSum, PrepareModel
from aggregator.coordinator.events import SplitBundle
from aggregator.coordinator.round_state import Contribution
from aggregator.masked_sum import masked_model
from aggregator.privacy import Noise, NoiseSecrets, round_noise
from aggregator.robust.combine import Combining, begin_combining
from models.plausible import LARGEST_CHANGE
from models.state import check_like, l2_norm, split_state
from models.trust.files import SecretError
from models.wire.blobstore import BlobStore
from models.wire.chunks import make_ref
from models.wire.messages import BlobRef, BundleFile
from models.wire.tensors import FloatArray, TensorsError, decode_tensors, encode_tensors
from models.wire.words import check_words, decode_words

T = TypeVar("T")
_FULL = os.strerror(errno.ENOSPC)
_MANIFEST = "manifest.json"
_SERVED = "served.blob"
#: Folder of the store that is emptied when the aggregator starts.
_UNFINISHED = "incoming"


class EffectError(Exception):
    """Heavy work that could not be done; the message says why."""


class Checked(NamedTuple):
    """Why an update cannot be used (empty: it can), and the L2 norm of all its numbers together (0 if it cannot)."""

    faults: list[str]
    norm: float = 0.0


@dataclass(slots=True)
class _Sum:
    """What one round's updates are combined in, and the contributions already in it."""

    base_sha256: str
    combining: Combining
    added: list[Contribution]


@dataclass(frozen=True, slots=True)
class NewModel:
    """A split's first model; `parts` is what its encoder and heads take, empty where they come from a parent."""

    model: BlobRef
    parts: dict[str, PartWork] = field(default_factory=dict)


class Effects:
    """Does the work of actions; results are blobs in `store`."""

    def __init__(self, store: BlobStore, max_state_bytes: int) -> None:
        self._store, self._max_state_bytes = store, max_state_bytes
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="averaging")
        self._sums: dict[tuple[str, str], _Sum] = {}
        self._secrets = NoiseSecrets(store.root.parent / "noise")
        self._shapes: tuple[str, dict[str, FloatArray]] = ("", {})

    async def prepare(self, action: PrepareModel) -> NewModel:
        """The model a split starts from: new weights, with what its parts take, or its parts of the parent's."""
        if action.parent is not None:
            parent = action.parent
            work = lambda: self._put(split_state(self._load(parent.sha256), action.tasks))  # noqa: E731
            return NewModel(await self._in_thread(work))
        request = {"tasks": list(action.tasks), "network": action.network, "size": action.size, "seed": action.seed}
        with tempfile.TemporaryDirectory(prefix="mas-export-") as folder:
            await _child("init", request, Path(folder))
            parts = msgspec.json.decode((Path(folder) / "parts.json").read_bytes(), type=dict[str, PartWork])
            return NewModel(await self._in_thread(lambda: self._adopt(Path(folder) / "state.blob")), parts)

    async def accumulate(self, action: Accumulate) -> None:
        """Add one update to its round's running sum, as it arrives."""
        await self._in_thread(lambda: self._add(action, (action.contribution,), action.index))

    async def average(self, action: Average) -> BlobRef:
        """The round's new model; begins the sum again when this process has not got all of it (after a restart)."""

        def work() -> BlobRef:
            if action.opened is not None:
                return self._put(self._unmasked(action, action.opened))
            have = self._sums.get((action.job, action.split))
            known = have.added if have is not None and have.base_sha256 == action.base.sha256 else []
            if tuple(known) != action.contributions[: len(known)]:
                self._sums.pop((action.job, action.split), None)
                known = []
            rest = action.contributions[len(known) :]
            self._add(action, rest, len(known))
            return self._put(self._sums.pop((action.job, action.split)).combining.result())

        return await self._in_thread(work)

    async def drop(self, job: str) -> None:
        """Give up the sums and the secret of a job that has ended, after the work that was asked for before."""

        def work() -> None:
            self._sums = {key: each for key, each in self._sums.items() if key[0] != job}
            self._secrets.forget(job)

        await self._in_thread(work)

    async def check_update(self, base_sha256: str, update: Path, masked: bool = False) -> Checked:
        """Whether an update can be added to its base: names, shapes, and values that are finite and of a sane size.

        Of one that is `masked` names and shapes alone are looked at: its values are noise.

        Raises TensorsError for an update without tensors, and EffectError for a base that is damaged.
        """

        def work() -> Checked:
            if self._shapes[0] != base_sha256:
                try:
                    base = self._load(base_sha256)
                except TensorsError as error:
                    raise EffectError(f"the model {base_sha256[:12]} is damaged on this disk: {error}") from error
                # Arrays that hold one number however large they are: nothing else of the base is looked at.
                like = {name: np.broadcast_to(np.float32(0), array.shape) for name, array in base.items()}
                self._shapes = (base_sha256, like)
            if masked:
                words = decode_words(update.read_bytes(), self._max_state_bytes)
                return Checked(check_words(words, self._shapes[1]))
            state = decode_tensors(update.read_bytes(), self._max_state_bytes)
            faults = check_like(state, self._shapes[1], LARGEST_CHANGE)
            return Checked(faults, 0.0 if faults else l2_norm(state.values()))

        return await self._in_thread(work)

    async def export(self, action: Export, version: str) -> tuple[SplitBundle, ...]:
        """One bundle a split, with the heads it serves: weights, ONNX, reference and manifest, each a blob."""
        bundles = []
        privacy = await self._in_thread(lambda: privacy_statement(action.spec.privacy, action.updates))
        for split in action.splits:
            request: dict[str, object] = {
                "job": action.job,
                "split": split.split,
                "scheme": action.spec.scheme,
                "tasks": list(split.serves),
                "network": action.spec.network,
                "size": action.spec.size,
                "state": str(self._store.path(split.model.sha256)),
                "model_sha256": split.model.sha256,
                "lineage": list(split.lineage),
                "rounds": split.rounds,
                "metrics": split.test_losses,
                "version": version,
                "privacy": privacy,
            }
            with tempfile.TemporaryDirectory(prefix="mas-export-") as folder:
                if split.serves != split.tasks:
                    served = Path(folder) / _SERVED
                    await self._in_thread(lambda s=split, to=served: self._keep_served(s, to))  # type: ignore[misc]
                    request["state"] = str(served)
                await _child("bundle", request, Path(folder))
                bundles.append(await self._in_thread(lambda f=folder, s=split: self._bundle(s.split, Path(f))))  # type: ignore[misc]
        return tuple(bundles)

    def close(self) -> None:
        """Wait for work in hand and end the thread."""
        self._thread.shutdown(wait=True)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _add(self, action: Accumulate | Average, contributions: tuple[Contribution, ...], index: int) -> None:
        have = self._sums.get((action.job, action.split))
        if have is None or have.base_sha256 != action.base.sha256:
            if index:
                return  # the beginning is not here; `average` will make up for it
            have = self._sums[action.job, action.split] = self._begin(action)
        for contribution in contributions[max(0, len(have.added) - index) :]:
            have.combining.add(_in_one_piece(self._load(contribution.update_sha256)), contribution.weight)
            have.added.append(contribution)

    def _begin(self, action: Accumulate | Average) -> _Sum:
        added: list[Contribution] = []

        def noise() -> Noise:
            return self._noise(action, added)

        base, folder = _in_one_piece(self._load(action.base.sha256)), self._store.root / _UNFINISHED
        combining = begin_combining(base, action.defence, action.privacy, folder=folder, noise=noise)
        return _Sum(action.base.sha256, combining, added)

    def _noise(self, action: Accumulate | Average, added: Sequence[Contribution]) -> Noise:
        updates = [contribution.update_sha256 for contribution in added]
        try:
            secret = self._secrets.of(action.job)
        except SecretError as error:
            raise EffectError(str(error)) from error
        return round_noise(secret, action.job, action.split, action.round, action.base.sha256, updates)

    def _unmasked(self, action: Average, opened: OpenedSum) -> dict[str, FloatArray]:
        paths = (self._store.path(each.update_sha256) for each in action.contributions)
        updates = (decode_words(path.read_bytes(), self._max_state_bytes) for path in paths)
        samples = sum(each.samples for each in action.contributions)
        base, noise = self._load(action.base.sha256), lambda: self._noise(action, action.contributions)
        return masked_model(base, updates, samples, opened, action.privacy, noise)

    def _load(self, sha256: str) -> dict[str, FloatArray]:
        return decode_tensors(self._store.path(sha256).read_bytes(), self._max_state_bytes)

    def _put(self, state: dict[str, FloatArray]) -> BlobRef:
        data = encode_tensors(state)
        self._store.put_bytes(data)
        return make_ref(data)

    def _adopt(self, path: Path) -> BlobRef:
        self._store.put_file(path)
        return make_ref(path)

    def _keep_served(self, split: ExportSplit, path: Path) -> None:
        path.write_bytes(encode_tensors(split_state(self._load(split.model.sha256), split.serves)))

    def _bundle(self, split: str, folder: Path) -> SplitBundle:
        names = sorted(path.name for path in folder.iterdir() if path.name not in (_MANIFEST, _SERVED, "request.json"))
        files = tuple(BundleFile(name, self._adopt(folder / name)) for name in names)
        return SplitBundle(split, self._adopt(folder / _MANIFEST), files)


def _in_one_piece(state: dict[str, FloatArray]) -> dict[str, FloatArray]:
    """The same arrays in one buffer; `state` is emptied, so that they are not there twice. Some wait for the averaging;
    hundreds of pieces of each, with what else comes and stays between them, would leave the heap in holes that nothing
    fits into.
    """
    buffer = np.empty(sum(array.size for array in state.values()), np.float32)
    found: dict[str, FloatArray] = {}
    start = 0
    for name in tuple(state):
        array = state.pop(name)
        piece = buffer[start : start + array.size].reshape(array.shape)
        np.copyto(piece, array)
        found[name], start = piece, start + array.size
    return found


async def _child(what: str, request: dict[str, object], folder: Path) -> None:
    """Run `python -m aggregator.export` on a request; raises EffectError with the end of what it said."""
    path = folder / "request.json"
    path.write_bytes(msgspec.json.encode(request))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "aggregator.export", what, str(path), str(folder),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        said, _ = await process.communicate()
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    if process.returncode != 0:
        words = said.decode(errors="replace")
        # A full disk is told apart from all that is the job's own fault: what it stopped is done again.
        full = OSError(errno.ENOSPC, _FULL) if _FULL in words else None
        raise EffectError(f"{what} failed: {words[-800:].strip() or process.returncode}") from full
