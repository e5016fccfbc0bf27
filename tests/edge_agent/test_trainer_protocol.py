"""Frames between the daemon and its trainer, and the spans they carry."""

from __future__ import annotations

import io
import itertools
import subprocess
import sys

import pytest

from edge_agent.trainer import protocol
from edge_agent.trainer.protocol import EvaluateDone, Setup, Span, Step, TrainDone, TrainerProtocolError, WorkFailed
from edge_agent.trainer.spans import SpanRecorder
from models.wire.messages import AffinitySums, TaskLoss

SPAN = Span("train", 1.0, 2.0, 0.5)
FROM_CHILD = [
    Step("affinity", 1, 2),
    TrainDone(3, (TaskLoss("normal", 1.0, 3),), AffinitySums(1, ((0.5,),)), ("a: b",), 1, (SPAN,), 1.0),
    TrainDone(3, (), None, (), 0, (), 1.0),
    EvaluateDone(3, (TaskLoss("normal", 1.0, 3),), (), 0, (SPAN,), 1.0),
    WorkFailed("why", True, (SPAN,)),
]


@pytest.mark.parametrize("message", FROM_CHILD, ids=lambda message: type(message).__name__)
def test_messages_travel_and_cut_frames_fail(message: protocol.FromChild) -> None:
    data = protocol.frame(message)
    body = protocol.read_body(io.BytesIO(data))
    assert body is not None
    assert protocol.from_child(body) == message
    for end in range(1, len(data)):
        with pytest.raises(TrainerProtocolError, match="ended"):
            protocol.read_body(io.BytesIO(data[:end]))
    with pytest.raises(TrainerProtocolError):
        protocol.from_parent(body)


def test_a_frame_is_its_length_and_message_pack() -> None:
    assert protocol.frame(Step("train", 1, 2)).hex() == (
        "00000024" + "84a474797065a453746570a57068617365a5747261696ea4646f6e6501a5746f74616c02"
    )


def test_the_end_of_a_stream_is_no_fault() -> None:
    stream = io.BytesIO(protocol.frame(Setup("root", ("a",), (), 1, 2)))
    assert protocol.read_body(stream) is not None
    assert protocol.read_body(stream) is None


def test_oversized_frames_are_refused_before_they_are_read() -> None:
    with pytest.raises(TrainerProtocolError, match="4294967295 bytes"):
        protocol.read_body(io.BytesIO(b"\xff\xff\xff\xff"))
    with pytest.raises(TrainerProtocolError, match="WorkFailed"):
        protocol.frame(WorkFailed("x" * (protocol.MAX_FRAME_BYTES + 1), False))


def test_the_daemon_needs_no_torch_to_speak() -> None:
    code = "import sys; import edge_agent.trainer.protocol; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Ticks:
    """Each reading is one second later."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def _record(phases: str, limit: int = 1000) -> SpanRecorder:
    recorder = SpanRecorder(clock=Ticks(), cpu_clock=Ticks(), limit=limit)
    for letter in phases:
        with recorder.phase("train" if letter == "t" else "affinity"):
            pass
    return recorder


def test_consecutive_spans_of_a_phase_merge() -> None:
    assert _record("tttaat").spans == (
        Span("train", 1.0, 6.0, 3.0),
        Span("affinity", 7.0, 10.0, 2.0),
        Span("train", 11.0, 12.0, 1.0),
    )


def test_a_span_is_recorded_when_its_body_fails() -> None:
    recorder = _record("")
    with pytest.raises(KeyError), recorder.phase("evaluate"):
        raise KeyError
    assert [span.phase for span in recorder.spans] == ["evaluate"]


def test_many_spans_are_joined_without_losing_time() -> None:
    recorder = _record("ta" * 40, limit=10)
    spans = recorder.spans
    assert len(spans) <= 10
    assert spans[0].start_s == 1.0
    assert spans[-1].end_s == 160.0
    assert sum(span.cpu_s for span in spans) == 80.0
    assert all(a.phase != b.phase and a.end_s < b.start_s for a, b in itertools.pairwise(spans))


def test_the_shortest_enclosed_span_is_the_one_given_up() -> None:
    times = iter([0, 10, 10, 11, 11, 20, 20, 25, 25, 30])
    recorder = SpanRecorder(clock=lambda: float(next(times)), cpu_clock=lambda: 0.0, limit=4)
    for phase in ("train", "affinity", "train", "affinity", "train"):
        with recorder.phase(phase):  # type: ignore[arg-type]
            pass
    assert [(span.phase, span.start_s, span.end_s) for span in recorder.spans] == [
        ("train", 0.0, 20.0),
        ("affinity", 20.0, 25.0),
        ("train", 25.0, 30.0),
    ]
    assert recorder.duration_s("train") == 25.0


def test_text_that_is_no_utf8_is_no_message() -> None:
    body = protocol.frame(WorkFailed("mend me", final=True))[protocol.HEADER_BYTES :].replace(
        b"mend", b"\xff\xfe\xfd\xfc"
    )
    with pytest.raises(TrainerProtocolError, match="not a message"):
        protocol.from_child(body)
