"""Plugs over a real broker: retained, partial and reordered messages, a counter's reset, and a broker that restarts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from edge_agent.config import PlugConfig, PowerConfig
from edge_agent.power.base import Measurement
from edge_agent.power.discover import open_meter
from edge_agent.power.plug_book import COUNTER_RESET
from edge_agent.power.plug_mqtt import PlugPower
from edge_agent.power.source import PowerSourceError, Reading
from models.link.address import Backoff
from models.link.mqtt import MqttLink
from tools.broker import EmbeddedBroker
from tools.cli.power import app

pytestmark = pytest.mark.slow
SOON = Backoff(0.02, 0.1)
LIMIT_S = 30.0


@pytest.fixture
def own_broker() -> Iterator[EmbeddedBroker]:
    """One of the test's own, which it may stop."""
    with EmbeddedBroker() as broker:
        yield broker


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 90))


async def eventually(condition: Callable[[], bool]) -> None:
    """Lets everybody work until `condition` holds; the test's own time limit ends it otherwise."""
    loop = asyncio.get_running_loop()
    while not condition():
        tick = loop.create_future()
        loop.call_later(0.005, tick.set_result, None)
        await tick


def plug(url: str, topic: str, period_s: float = 5.0) -> PlugPower:
    return PlugPower(PlugConfig(url, topic, period_s=period_s), SOON)


def listening(source: PlugPower) -> bool:
    return source._reason == ""


def publisher(url: str, name: str) -> MqttLink:
    return MqttLink(url, name, session_expiry_s=0, backoff=SOON)


def tasmota(watts: float, second: int, total_kwh: float = 1.0) -> bytes:
    time = f"2024-05-06T07:{second // 60:02}:{second % 60:02}"
    return json.dumps({"Time": time, "ENERGY": {"Power": watts, "Total": total_kwh}}).encode()


async def taken(source: PlugPower, number: int) -> list[Reading]:
    """The next `number` samples, in order."""
    got: list[Reading] = []
    while len(got) < number:
        said = await asyncio.to_thread(source.read)
        if not got or said.at_s != got[-1].at_s:
            got.append(said)
        await asyncio.sleep(0)
    return got


def test_a_retained_message_is_state_and_what_comes_after_it_are_samples(broker_url: str) -> None:
    async def test() -> None:
        async with publisher(broker_url, "plug-retained") as link:
            await link.publish("tele/kept/SENSOR", tasmota(500.0, 0), retain=True)
            source = plug(broker_url, "tele/kept/SENSOR")
            try:
                await eventually(lambda: source.dropped.get("retained", 0) == 1)
                await link.publish("tele/kept/SENSOR", tasmota(56.0, 1), retain=True)
                await link.publish("tele/kept/SENSOR", tasmota(57.0, 3), retain=True)
                assert [each.power_w for each in await taken(source, 2)] == [56.0, 57.0]
            finally:
                source.close()

    run(test())


def test_only_a_retained_message_is_no_reading_and_the_reason_says_so(broker_url: str) -> None:
    async def test() -> None:
        async with publisher(broker_url, "plug-only") as link:
            await link.publish("tele/only/SENSOR", tasmota(500.0, 0), retain=True)
            now_s = 0.0
            source = PlugPower(PlugConfig(broker_url, "tele/only/SENSOR", period_s=5.0), SOON, clock=lambda: now_s)
            try:
                await eventually(lambda: source.dropped.get("retained", 0) == 1)
                now_s = 60.0
                with pytest.raises(
                    PowerSourceError, match=r"no sample .* for 60 s, but for a retained message.*TelePeriod"
                ):
                    source.read()
            finally:
                source.close()

    run(test())


def test_shelly_zigbee_and_bad_messages(broker_url: str) -> None:
    async def test() -> None:
        sources = [plug(broker_url, f"mix/a/{rest}") for rest in ("status/switch:0", "events/rpc")]
        sources.append(plug(broker_url, "mix/z"))
        async with publisher(broker_url, "plug-mix") as link:
            try:
                await eventually(lambda: all(map(listening, sources)))
                for payload in (b"{", b'{"id":0,"output":true}', b'{"apower":10.7,"aenergy":{"total":5.0}}'):
                    await link.publish("mix/a/status/switch:0", payload)
                for params in ({"sys": {}}, {"switch:0": {"aenergy": {"total": 1.0}}}, {"switch:0": {"apower": 8.9}}):
                    event = {"method": "NotifyStatus", "params": {"ts": 1.0, **params}}
                    await link.publish("mix/a/events/rpc", json.dumps(event).encode())
                await link.publish("mix/z", b'{"power":56.1,"energy":514.15}')
                said = [(await taken(source, 1))[0].power_w for source in sources]
                assert said == [10.7, 8.9, 56.1]
                assert sources[0].dropped == {"unreadable": 1}
            finally:
                for source in sources:
                    source.close()

    run(test())


def test_reordered_messages_and_a_counter_that_was_reset(broker_url: str) -> None:
    async def test() -> None:
        source = plug(broker_url, "tele/mess/SENSOR")
        async with publisher(broker_url, "plug-mess") as link:
            try:
                await eventually(lambda: listening(source))
                for watts, second, total in ((60.0, 10, 5.0), (61.0, 20, 5.001), (99.0, 15, 5.0), (62.0, 30, 0.0)):
                    await link.publish("tele/mess/SENSOR", tasmota(watts, second, total))
                got = await taken(source, 3)
                assert [(each.power_w, each.flags) for each in got] == [
                    (60.0, ()),
                    (61.0, ()),
                    (62.0, (COUNTER_RESET,)),
                ]
                assert source.dropped == {"overtaken or repeated": 1}
            finally:
                source.close()

    run(test())


def test_a_plug_that_goes_offline_says_so_and_comes_back(broker_url: str) -> None:
    async def test() -> None:
        source = plug(broker_url, "tele/gone/SENSOR")
        async with publisher(broker_url, "plug-gone") as link:
            try:
                await eventually(lambda: listening(source))
                await link.publish("tele/gone/SENSOR", tasmota(60.0, 1))
                assert (await taken(source, 1))[0].power_w == 60.0
                await link.publish("tele/gone/LWT", b"Offline", retain=True)
                await eventually(lambda: source._book.online is False)
                with pytest.raises(PowerSourceError, match="offline, says its last will"):
                    source.read()
                await link.publish("tele/gone/SENSOR", tasmota(61.0, 9))
                await eventually(lambda: source._book.online is True)
                assert source.read().power_w == 61.0
            finally:
                source.close()

    run(test())


def test_a_brokers_restart_loses_only_what_came_meanwhile(own_broker: EmbeddedBroker) -> None:
    """Every message of before and after arrives once and in order; the time between is a gap, and is said to be."""

    async def test() -> None:
        source = plug(own_broker.url, "tele/desk/SENSOR")
        async with publisher(own_broker.url, "plug-desk") as link:
            try:
                await eventually(lambda: listening(source))
                first = await said(link, 0)
                assert [each.power_w for each in await taken(source, len(first))] == first
                own_broker.stop()
                await eventually(lambda: not listening(source))
                clock, source._clock = source._clock, lambda: 1e9  # long after
                with pytest.raises(PowerSourceError, match=r"no link to mqtt://127\.0\.0\.1:\d+: "):
                    source.read()
                source._clock = clock
                own_broker.start()
                await eventually(lambda: listening(source))
                second = await said(link, 100)
                assert [each.power_w for each in await taken(source, len(second))] == second
            finally:
                source.close()

    async def said(link: MqttLink, start: int) -> list[float]:
        for number in range(start, start + 30):
            await link.publish("tele/desk/SENSOR", tasmota(float(number), number))
        return [float(number) for number in range(start, start + 30)]

    run(test())


def test_the_meter_over_a_plug_calls_a_restart_partial_and_counts_the_rest(own_broker: EmbeddedBroker) -> None:
    async def test() -> None:
        settings = PlugConfig(own_broker.url, "tele/lab/SENSOR", period_s=0.1)
        stop = asyncio.Event()

        async def tell() -> None:
            """A steady 60 W, ten times more often than promised, so that only the restart makes a gap."""
            second = 0
            async with publisher(own_broker.url, "plug-lab") as link:
                while not stop.is_set():
                    second += 1
                    await link.publish("tele/lab/SENSOR", tasmota(60.0, second % 3600))
                    tick = asyncio.get_running_loop().create_future()
                    asyncio.get_running_loop().call_later(0.01, tick.set_result, None)
                    await tick

        telling = asyncio.create_task(tell())
        config = PowerConfig(root="/nowhere", plug=settings, period_s=0.01)
        meter, why = await asyncio.to_thread(open_meter, config, lambda: 0.0)
        assert (meter.source, meter.scope, meter.domain, meter.state) == ("plug", "wall", "plug:lab", "measured")
        assert why.startswith("plug reads real power, scope wall")
        try:
            await asyncio.to_thread(meter.start)
            clock = meter._sampler.now_s  # type: ignore[attr-defined]
            whole = Measurement(None, "missing")
            while whole.state != "measured":  # on a busy machine even this plug may fall silent for a moment
                start_s = clock()
                await eventually(lambda: meter.measure(start_s, clock(), 0.0).n_samples >= 10)  # noqa: B023
                whole = meter.measure(start_s, clock(), 0.0)
            await asyncio.to_thread(own_broker.stop)
            await eventually(lambda: meter.power_w() is None)
            await asyncio.to_thread(own_broker.start)
            await eventually(lambda: meter.power_w() == 60.0)
            back_s = clock()
            await eventually(lambda: meter.measure(back_s, clock(), 0.0).n_samples >= 10)
            both = meter.measure(start_s, clock(), 0.0)
        finally:
            stop.set()
            await telling
            await asyncio.to_thread(meter.stop)
        assert (whole.state, whole.energy_j) == ("measured", pytest.approx(60.0 * whole.duration_s))
        assert both.state == "partial"
        assert both.reason
        assert both.max_gap_s is not None
        assert both.max_gap_s > 0.3
        assert both.energy_j == pytest.approx(60.0 * both.coverage * both.duration_s)
        assert 0 < both.coverage < 1

    run(test())


def test_a_board_is_calibrated_to_a_plug_and_then_says_so(broker_url: str, tmp_path: Path) -> None:
    """The board says 4 W and 8 W in turns, the plug in front of it 1.25 times that and 2 W more."""
    board = tmp_path / "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3"
    board.mkdir(parents=True)
    (board / "in1_label").write_text("VDD_IN\n")
    (board / "in1_input").write_text("5000\n")
    (board / "curr1_input").write_text("800\n")
    settings = tmp_path / "agent.toml"
    settings.write_text(
        f'id = "a"\nbroker = "{broker_url}"\nstate_dir = "{tmp_path}"\n[data]\nroot = "/d"\n[power]\n'
        f'root = "{tmp_path}"\nperiod_s = 0.02\nplug = {{broker = "{broker_url}", topic = "z/cal", period_s = 0.1}}\n'
    )

    async def test() -> None:
        stop = asyncio.Event()

        async def live() -> None:
            turn = 0
            async with publisher(broker_url, "plug-cal") as link:
                while not stop.is_set():
                    watts = 8.0 if turn // 40 % 2 else 4.0
                    turn += 1
                    (board / "new").write_text(f"{int(watts * 200)}\n")
                    (board / "new").rename(board / "curr1_input")
                    await link.publish("z/cal", json.dumps({"power": 1.25 * watts + 2.0}).encode())
                    tick = asyncio.get_running_loop().create_future()
                    asyncio.get_running_loop().call_later(0.02, tick.set_result, None)
                    await tick

        living = asyncio.create_task(live())

        def command(*arguments: str) -> Any:
            return CliRunner().invoke(app, [*arguments, "--config", str(settings), "--json"])

        try:
            done = await asyncio.to_thread(
                command, "calibrate", "--reference", "plug", "--source", "jetson-sysfs", "--seconds", "5", "--load", "0"
            )
            found = await asyncio.to_thread(command, "read", "--source", "jetson-sysfs", "--seconds", "0.5")
        finally:
            stop.set()
            await living
        assert done.exit_code == 0, done.output
        fitted = json.loads(done.stdout)
        assert fitted["gain"] == pytest.approx(1.25, rel=0.1)
        assert fitted["offset_w"] == pytest.approx(2.0, abs=0.6)
        assert fitted["gain_low"] < fitted["gain"] < fitted["gain_high"]
        said = json.loads(found.stdout)
        assert (said["state"], said["scope"], said["source"]) == ("calibrated", "wall", "jetson-sysfs")
        assert 6.5 < said["power_w"]["mean"] < 12.5

    run(test())
