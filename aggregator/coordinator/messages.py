"""Turns an order's key into its message and pending work into its action; the same again after a restart."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from aggregator.coordinator.actions import Average, Export, ExportSplit, OpenedSum, PrepareModel
from aggregator.coordinator.batches import batch_size
from aggregator.coordinator.participation import most_updates
from aggregator.coordinator.seeds import learning_rate, order_seed
from aggregator.coordinator.state import Base, Job, Split
from models.masking.agreement import names_of
from models.wire.job import TrainSettings
from models.wire.messages import BlobRef, DeployOrder, EvaluateOrder, OrderKey, TrainOrder, UnmaskOrder


class LostReferenceError(RuntimeError):
    """The state asks for work on a blob it no longer names; a fault of this package."""


def order_message(job: Job, key: OrderKey) -> TrainOrder | EvaluateOrder | DeployOrder | UnmaskOrder:
    """The message of an open order."""
    split = job.splits[key.split]
    if key.kind == "train":
        return _train_order(job, split, key)
    if key.kind == "evaluate":
        return _evaluate_order(job, split, key)
    if key.kind == "unmask":
        return _unmask_order(job, split, key)
    if split.bundle is None:
        raise LostReferenceError(f"the bundle of {job.job}/{split.split}")
    return DeployOrder(key=key, manifest=split.bundle.manifest, files=split.bundle.files, ttl_s=job.spec.deadline_s)


def probe_every(job: Job, split: Split, round_index: int) -> int:
    """Batches between two affinity probes in a round of the split; 0 in rounds whose affinity nobody reads."""
    return job.spec.probe_every if round_index < split.probe_rounds else 0


def settings_of(job: Job, split: Split, round_index: int, agent: str = "") -> TrainSettings:
    """How the split's round `round_index` is trained, with that round's learning rate, and `agent`'s size of batch."""
    base = split.train if split.train is not None else job.spec.train
    spec = msgspec.structs.replace(job.spec, train=base)
    size = batch_size(job, split, agent, "train")
    return _settings(base, learning_rate(spec, round_index, split.lr_from), size)


@lru_cache(maxsize=64)
def _settings(base: TrainSettings, lr: float, batch_size: int) -> TrainSettings:
    """One object for all orders that are alike: a thousand may wait to be sent."""
    return msgspec.structs.replace(base, lr=lr, batch_size=batch_size)


def _train_order(job: Job, split: Split, key: OrderKey) -> TrainOrder:
    spec, base = job.spec, _base(job, split, key.round)
    return TrainOrder(
        key=key,
        tasks=split.tasks,
        network=spec.network,
        size=spec.size,
        base=base.model,
        seed=order_seed(spec, split.split, key.round, key.agent),
        settings=settings_of(job, split, key.round, key.agent),
        probe_every=probe_every(job, split, key.round),
        update_dtype=spec.update_dtype,
        max_skipped_share=spec.max_skipped_share,
        ttl_s=spec.deadline_s,
        loss_weights=base.loss_weights,
        reference_losses=base.reference_losses,
        masking=split.current.masked.masking if split.current and split.current.masked else None,
    )


def _unmask_order(job: Job, split: Split, key: OrderKey) -> UnmaskOrder:
    if split.current is None or split.current.masked is None:
        raise LostReferenceError(f"the masked round of {job.job}/{split.split}")
    masked = split.current.masked
    names = names_of(masked.masking)
    survivors, own = tuple(name for name in names if name in masked.shares), names.index(key.agent)
    boxes = tuple(masked.shares[name].boxes[own] for name in survivors)
    return UnmaskOrder(key, masked.masking, survivors, boxes, job.spec.deadline_s)


def _base(job: Job, split: Split, round_index: int) -> Base:
    if split.buffer is None:
        return Base(model_of(job, split), split.loss_weights, split.reference_losses)
    if round_index not in split.buffer.bases:
        raise LostReferenceError(f"the model of round {round_index} of {job.job}/{split.split}")
    return split.buffer.bases[round_index]


def _evaluate_order(job: Job, split: Split, key: OrderKey) -> EvaluateOrder:
    evaluation = next(e for e in split.evaluations if e.round == key.round)
    return EvaluateOrder(
        key=key,
        tasks=split.tasks,
        network=job.spec.network,
        size=job.spec.size,
        base=evaluation.model,
        batch_size=batch_size(job, split, key.agent, "evaluate"),
        max_skipped_share=job.spec.max_skipped_share,
        ttl_s=job.spec.deadline_s,
        side=evaluation.side,
    )


def model_of(job: Job, split: Split) -> BlobRef:
    """The split's present model."""
    if split.model is None:
        raise LostReferenceError(f"the model of {job.job}/{split.split}")
    return split.model


def prepare_action(job: Job, split: Split) -> PrepareModel:
    """How the split's first model comes about."""
    parent = job.splits[split.parent] if split.parent is not None else None
    return PrepareModel(
        job=job.job,
        split=split.split,
        tasks=split.tasks,
        network=job.spec.network,
        size=job.spec.size,
        seed=job.spec.seed,
        round=split.first_round,
        parent_split=parent.split if parent else None,
        parent_tasks=parent.tasks if parent else (),
        parent=model_of(job, parent) if parent else None,
    )


def average_action(job: Job, split: Split) -> Average:
    """The averaging of a closed round."""
    if split.current is None:
        raise LostReferenceError(f"the round of {job.job}/{split.split}")
    contributions, masked, spec = split.current.contributions, split.current.masked, job.spec
    opened = OpenedSum(masked.masking, masked.opened) if masked is not None and masked.opened is not None else None
    return Average(
        job.job, split.split, split.round, model_of(job, split), contributions, spec.defence, spec.privacy, opened
    )


def export_action(job: Job) -> Export:
    """The export of all splits that serve."""
    splits = tuple(_export_split(job, split) for split in job.served_splits)
    return Export(job.job, job.spec, splits, most_updates(job))


def _export_split(job: Job, split: Split) -> ExportSplit:
    lineage: list[str] = []
    ancestor = split.parent
    while ancestor is not None:
        lineage.insert(0, ancestor)
        ancestor = job.splits[ancestor].parent
    return ExportSplit(
        split=split.split,
        tasks=split.tasks,
        serves=split.serves,
        model=model_of(job, split),
        lineage=tuple(lineage),
        rounds=split.last_round + 1,
        test_losses={task: split.history[-1].test_losses[task] for task in split.serves},
    )
