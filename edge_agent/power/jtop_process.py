"""`python -m edge_agent.power.jtop_process`: asks jtop for power and tells it on stdout, a line of JSON each time.

In a process of its own, because importing jtop (jetson-stats) forces the whole process to start its children by fork,
and because its threads and its licence are then nobody else's. Lines are `{"uptime_s", "rails": {name: watts},
"total"}`, where `total` names the one rail that is the whole input ("" where there is none), or one `{"error"}`,
after which the process ends. It also ends when nobody reads its lines, and when its stdin closes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

_MENDS = (
    "see that jetson_stats.service runs (`sudo systemctl restart jetson_stats`), that it is of the same version as the"
    " installed jetson-stats, and that this user is in group jtop (`sudo usermod -aG jtop $USER`, then log in again)"
)
_NO_SENSORS = "jtop knows no power sensors on this board"


def sample_of(power: Mapping[str, Any], uptime: Any) -> dict[str, Any]:
    """One line's content from `jtop.power` (mW) and `jtop.uptime` (a timedelta, or seconds).

    Only `power` is taken: `avg` is a running filter over earlier samples, and integrating it counts them twice.
    Raises ValueError when there is nothing to take.
    """
    rails = {name: rail["power"] / 1000 for name, rail in power.get("rail", {}).items()}
    total = power.get("tot", {})
    name = str(total.get("name", "")) if total.get("name") not in (None, "ALL") else ""
    if name and name not in rails:  # jtop moves the rail of the whole input out of the others
        rails[name] = total["power"] / 1000
    if not rails:
        raise ValueError(_NO_SENSORS)
    seconds = uptime.total_seconds() if hasattr(uptime, "total_seconds") else float(uptime)
    return {"uptime_s": seconds, "rails": rails, "total": name}


def serve(jtop: Any, interval_s: float, out: TextIO) -> None:
    """Tells one line for each update of jtop until it ends. `jtop` is the module; its errors become a line."""
    try:
        with jtop.jtop(interval=interval_s) as client:
            while client.ok():
                _tell(out, sample_of(client.power, client.uptime))
        _tell(out, {"error": f"jtop ended; {_MENDS}"})
    except jtop.JtopException as error:
        _tell(out, {"error": f"jtop: {error}; {_MENDS}"})
    except BrokenPipeError:
        raise
    except OSError as error:  # jtop hands on what its socket says
        _tell(out, {"error": f"jtop: {error}; {_MENDS}"})
    except (KeyError, TypeError, AttributeError) as error:
        _tell(out, {"error": f"jtop says {error!r} in a form that is not known here; install jetson-stats 7 or later"})
    except ValueError as error:
        _tell(out, {"error": str(error)})


def _tell(out: TextIO, line: Mapping[str, Any]) -> None:
    out.write(json.dumps(line) + "\n")
    out.flush()


def _end_with_stdin() -> None:
    """Ends the process when its parent has gone, even while jtop keeps it waiting."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m edge_agent.power.jtop_process", description=__doc__)
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between samples")
    options = parser.parse_args()
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    try:
        import jtop  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        _tell(sys.stdout, {"error": "jetson-stats is not installed; pip install 'mas-edge[jetson]' brings it"})
        return 1
    try:
        serve(jtop, options.interval, sys.stdout)
    except BrokenPipeError:
        os._exit(0)  # whoever listened has gone; there is nobody left to tell
    return 1


if __name__ == "__main__":
    sys.exit(main())
