"""Jetson boards (JetPack 5 and later): INA3221 monitors under hwmon, read without any dependency."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_agent.power.base import PowerSourceError

#: Rails that carry the whole input, by board family; any one of them is the total.
_TOTAL_RAILS = {"VDD_IN": "module", "POM_5V_IN": "board"}


@dataclass(frozen=True, slots=True)
class Rail:
    """One monitored rail: files with millivolts and milliamperes."""

    label: str
    voltage_mv: Path
    current_ma: Path

    def read_w(self) -> float:
        """Watts now; small negative readings are real and kept."""
        try:
            return int(self.voltage_mv.read_text()) * int(self.current_ma.read_text()) / 1e6
        except PermissionError as error:
            reason = "permission denied; give the agent's user read access"
            raise PowerSourceError(f"rail {self.label}: {reason}") from error
        except (OSError, ValueError) as error:
            raise PowerSourceError(f"rail {self.label}: {error}") from error


class JetsonSysfs:
    """The whole-input rail where the board has one, else the sum of its rails."""

    name = "jetson-sysfs"

    def __init__(self, root: Path) -> None:
        rails = find_rails(root)
        total = next((rail for rail in rails if rail.label in _TOTAL_RAILS), None)
        self._rails = [total] if total else rails
        self.scope = _TOTAL_RAILS[total.label] if total else "sum_of_rails"

    def read_w(self) -> float:
        """Watts of the chosen rails."""
        return sum(rail.read_w() for rail in self._rails)


def find_rails(root: Path) -> list[Rail]:
    """Rails of every INA3221; channel 7 (the sum of shunts) and unconnected (`NC`) rails are left out.

    Raises PowerSourceError when there is none, or one that cannot be read.
    """
    rails: list[Rail] = []
    for folder in sorted(root.glob("sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*")):
        for channel in (1, 2, 3):
            path = folder / f"in{channel}_label"
            try:
                label = path.read_text().strip()
            except FileNotFoundError:
                continue  # a channel without a label is not wired up
            except PermissionError as error:
                raise PowerSourceError(f"{path}: permission denied; give the agent's user read access") from error
            except OSError as error:
                raise PowerSourceError(f"{path}: {error}") from error
            if label != "NC":
                rails.append(Rail(label, folder / f"in{channel}_input", folder / f"curr{channel}_input"))
    if not rails:
        where = "/sys/bus/i2c/drivers/ina3221"
        raise PowerSourceError(f"no INA3221 power monitor under {where} (not a Jetson with JetPack 5+)")
    return rails
