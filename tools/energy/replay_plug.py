"""`python -m tools.energy.replay_plug BROKER TOPIC TRACE PERIOD_S`: a plug that is not there, for a local comparison.

It says on MQTT what a Tasmota plug would that saw the watts of a recorded trace, so that everything from the broker to
the report is the code that a real plug's figures go through.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

from edge_agent.config import ReplayConfig
from edge_agent.power.replay import open_replay
from edge_agent.power.source import PowerSourceError, Reading
from models.link.mqtt import MqttLink

_J_PER_KWH = 3.6e6


class Telling:
    """A plug's messages: watts as they are, and a counter that adds them up."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None
        self._energy_j = 0.0

    def message(self, power_w: float, now_s: float, at: datetime) -> bytes:
        """What it says at `now_s` (monotonic), which is `at`."""
        if self._last is not None:
            self._energy_j += (power_w + self._last[1]) / 2 * (now_s - self._last[0])
        self._last = (now_s, power_w)
        energy = {"Total": round(self._energy_j / _J_PER_KWH, 3), "Power": round(power_w, 1)}
        return json.dumps({"Time": at.strftime("%Y-%m-%dT%H:%M:%S"), "ENERGY": energy}).encode()


async def publish(broker: str, topic: str, read_w: Callable[[], float | None], period_s: float) -> None:
    """Tell `topic` every `period_s`, until cancelled."""
    telling = Telling()
    async with MqttLink(broker, "mas-replayed-plug", session_expiry_s=0) as link:
        while True:
            power_w = read_w()
            if power_w is not None:
                said = telling.message(power_w, time.monotonic(), datetime.now(timezone.utc))
                await link.publish(topic, said)
            await asyncio.sleep(period_s)


def reader_of(trace: Path) -> Callable[[], float | None]:
    """Watts of a trace that is played round and round; None where it recorded none. Raises PowerSourceError."""
    source = open_replay(ReplayConfig(str(trace), loop=True))

    def read_w() -> float | None:
        try:
            said = source.read()
        except PowerSourceError:
            return None  # the trace holds a failed read here: a plug would say nothing
        if not isinstance(said, Reading):
            raise PowerSourceError(f"{trace} is a counter's trace; a plug replays one of watts")
        return said.power_w

    return read_w


def main() -> None:
    """Run until the process is ended."""
    broker, topic, trace, period_s = sys.argv[1:]
    asyncio.run(publish(broker, topic, reader_of(Path(trace)), float(period_s)))


if __name__ == "__main__":
    main()
