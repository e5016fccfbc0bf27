"""Picks a meter: a real reading where there is one, else what the settings allow, and says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edge_agent.config import PowerConfig
from edge_agent.power.base import Meter, NoMeter, PowerSourceError, SampledMeter
from edge_agent.power.estimate import CpuTimeEstimate
from edge_agent.power.jetson_sysfs import JetsonSysfs


def open_meter(config: PowerConfig, cpu_clock: Callable[[], float]) -> tuple[Meter, str]:
    """The meter of this device and one line that says why this one; `cpu_clock` counts the CPU seconds of the work.

    Raises PowerSourceError when a source is asked for by name and cannot be read.
    """
    if config.source == "none":
        return NoMeter('power.source is "none"'), "metering is switched off"
    if config.source == "estimate":
        return CpuTimeEstimate(config.watts_per_core, cpu_clock), 'power.source is "estimate"'
    try:
        source = JetsonSysfs(Path(config.root))
        source.read_w()
    except PowerSourceError as error:
        if config.source != "auto":
            raise
        why = f"no meter found ({error}); falling back to an estimate"
        return CpuTimeEstimate(config.watts_per_core, cpu_clock), why
    return SampledMeter(source, config.period_s), f"{source.name} reads real power, scope {source.scope}"
