"""The trainer's main loop: one work after another, each answered by exactly one final message."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from edge_agent.datasets import DatasetError
from edge_agent.trainer.local import TrainingError, batch_indices, evaluate, train
from edge_agent.trainer.probe import AffinityMeter
from edge_agent.trainer.protocol import EvaluateDone, FromChild, Step, TrainDone, Work, WorkFailed, WorkPhase
from edge_agent.trainer.samples import Stock, TooManyFaultsError
from edge_agent.trainer.spans import SpanRecorder
from models.networks import MultiTaskNet, UnknownNetworkError, build_network, export_state, load_state
from models.state import State, StateError
from models.wire.messages import EvaluateOrder, TrainOrder
from models.wire.tensors import TensorsError, decode_tensors, encode_tensors

STEP_EVERY_S = 0.5
_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


@dataclass(slots=True)
class Trainer:
    """Does works with one device's data; `say` sends a message to the parent."""

    stock: Stock
    say: Callable[[FromChild], None]
    clock: Callable[[], float] = time.monotonic

    def do(self, work: Work) -> None:
        """Do one work and say how it ended; nothing that goes wrong in it ends the process."""
        spans = SpanRecorder()
        try:
            self.say(self._do(work, spans))
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told and the next work goes on
            traceback.print_exc(file=sys.stderr)
            reason, final = _explained(error)
            self.say(WorkFailed(reason[:1000], final, spans.spans))

    def _do(self, work: Work, spans: SpanRecorder) -> FromChild:
        order = work.order
        base = decode_tensors(Path(work.base).read_bytes())
        network = build_network(order.network, order.tasks, order.size, seed=0)
        load_state(network, base)
        if isinstance(order, EvaluateOrder):
            return self._evaluate(order, network, spans)
        return self._train(order, network, base, Path(work.output), spans)

    def _train(
        self, order: TrainOrder, network: MultiTaskNet, base: State, output: Path, spans: SpanRecorder
    ) -> TrainDone:
        samples = self.stock.samples("train", order.tasks, order.size, order.max_skipped_share)
        meter = AffinityMeter(order.tasks, order.probe_every, first_batch=_batches_before(order, len(samples)))
        trained = train(network, samples, order.settings, order.seed, meter, spans, self._stepper())
        samples.check_faults()
        output.write_bytes(_update(export_state(network), base, order.update_dtype))
        return TrainDone(
            samples=samples.usable,
            losses=trained.losses,
            affinity=trained.affinity.result(),
            skipped=samples.skipped,
            skipped_total=samples.skipped_total,
            spans=spans.spans,
            # A scheme that probes pays for it in time as in joules.
            train_s=spans.duration_s("train") + spans.duration_s("affinity"),
        )

    def _evaluate(self, order: EvaluateOrder, network: MultiTaskNet, spans: SpanRecorder) -> EvaluateDone:
        samples = self.stock.samples("test", order.tasks, order.size, order.max_skipped_share)
        losses = evaluate(network, samples, order.batch_size, spans, self._stepper())
        samples.check_faults()
        return EvaluateDone(
            samples=samples.usable,
            losses=losses,
            skipped=samples.skipped,
            skipped_total=samples.skipped_total,
            spans=spans.spans,
            evaluate_s=spans.duration_s("evaluate"),
        )

    def _stepper(self) -> Callable[[WorkPhase, int, int], None]:
        last_s = -STEP_EVERY_S

        def step(phase: WorkPhase, done: int, total: int) -> None:
            nonlocal last_s
            now_s = self.clock()
            if done == total or now_s - last_s >= STEP_EVERY_S:
                last_s = now_s
                self.say(Step(phase, done, total))

        return step


def _batches_before(order: TrainOrder, samples: int) -> int:
    """Batches of earlier rounds, as if this device had trained in each of them (rounds count from 0)."""
    per_epoch = len(batch_indices(np.arange(samples), order.settings.batch_size))
    return order.key.round * order.settings.epochs * per_epoch


def _update(state: State, base: State, dtype: Literal["fp32", "fp16"]) -> bytes:
    """The update blob: trained minus base. Raises TrainingError for one that cannot be averaged."""
    delta = {name: np.subtract(value, base[name], dtype=np.float32) for name, value in state.items()}
    broken = [name for name, value in delta.items() if not np.isfinite(value).all()]
    if broken:
        raise TrainingError(f"training diverged: {broken[0]} and {len(broken) - 1} more are not finite", final=True)
    try:
        return encode_tensors(delta, dtype)
    except TensorsError as error:
        raise TrainingError(f"the update cannot be sent: {error}; order update_dtype fp32", final=True) from error


def _explained(error: Exception) -> tuple[str, bool]:
    """Reason for the aggregator, and whether the same order would end the same way here."""
    if isinstance(error, MemoryError) or any(text in str(error).lower() for text in _OUT_OF_MEMORY):
        return f"out of memory: {error}; free memory or order smaller batches", False
    if isinstance(error, TrainingError):
        return str(error), error.final
    if isinstance(error, TooManyFaultsError | DatasetError):
        return str(error), True
    if isinstance(error, TensorsError | StateError):
        return f"the base model cannot be used: {error}", True
    if isinstance(error, UnknownNetworkError | ValueError):
        return f"the order cannot be done here: {error}", True
    if isinstance(error, OSError):
        return f"a file could not be read or written: {error}", False
    return f"unexpected {type(error).__name__}: {error}", False
