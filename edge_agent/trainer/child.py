"""The trainer's main loop: one work after another, each answered by exactly one final message."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edge_agent.trainer.failures import TrainingError, failure
from edge_agent.trainer.perform import Workbench
from edge_agent.trainer.protocol import FromChild, Step, Work, WorkPhase
from edge_agent.trainer.samples import Stock
from edge_agent.trainer.spans import SpanRecorder
from models.state import State
from models.wire.messages import EvaluateOrder
from models.wire.tensors import TensorsError, decode_tensors, encode_tensors

STEP_EVERY_S = 0.5


@dataclass(slots=True)
class Trainer:
    """Does works with one device's data; `say` sends a message to the parent."""

    stock: Stock
    say: Callable[[FromChild], None]
    clock: Callable[[], float] = time.monotonic
    bench: Workbench = field(default_factory=Workbench)

    def do(self, work: Work) -> None:
        """Do one work and say how it ended; nothing that goes wrong in it ends the process."""
        spans = SpanRecorder()
        try:
            self.say(self._do(work, spans))
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told and the next work goes on
            traceback.print_exc(file=sys.stderr)
            self.say(failure(error, spans.spans))

    def _do(self, work: Work, spans: SpanRecorder) -> FromChild:
        order = work.order
        base = decode_tensors(Path(work.base).read_bytes())
        if isinstance(order, EvaluateOrder):
            samples = self.stock.samples(order.side, order.tasks, order.size, order.max_skipped_share)
            return self.bench.evaluate(order, base, samples, spans, self._stepper())
        samples = self.stock.samples("train", order.tasks, order.size, order.max_skipped_share)
        done, update = self.bench.train(order, base, samples, spans, self._stepper())
        Path(work.output).write_bytes(_encoded(update, order.update_dtype))
        return done

    def _stepper(self) -> Callable[[WorkPhase, int, int], None]:
        last_s = -STEP_EVERY_S

        def step(phase: WorkPhase, done: int, total: int) -> None:
            nonlocal last_s
            now_s = self.clock()
            if done == total or now_s - last_s >= STEP_EVERY_S:
                last_s = now_s
                self.say(Step(phase, done, total))

        return step


def _encoded(update: State, dtype: Literal["fp32", "fp16"]) -> bytes:
    """The update blob. Raises TrainingError for one that half precision cannot hold."""
    try:
        return encode_tensors(update, dtype)
    except TensorsError as error:
        raise TrainingError(f"the update cannot be sent: {error}; order update_dtype fp32", final=True) from error
