"""The demo's JSON and closing table, from the records of its jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from models.tasks import letters
from tools.job_text import joules

Json = Mapping[str, Any]
_SCHEME_KEYS = (
    "total_loss",
    "losses",
    "energy_j",
    "energy_state",
    "energy_by_phase",
    "train_s",
    "wall_s",
    "bytes_up",
    "bytes_down",
)


def summarise(records: Mapping[str, Json], tasks: Sequence[str], agents: Sequence[str]) -> dict[str, Any]:
    """`records` by scheme -> the JSON that `mas demo --json` writes. Affinity is `[source][target]`."""
    mas = records["mas"]
    affinity, decision = mas["affinity"], mas["decision"]
    return {
        "tasks": list(tasks),
        "agents": list(agents),
        "affinity": affinity["matrix"] if affinity else None,
        "splits": decision["splits"] if decision else None,
        "schemes": {scheme: {key: record[key] for key in _SCHEME_KEYS} for scheme, record in records.items()},
        "bundles": [
            {
                "agent": bundle["agent"],
                "split": bundle["split"],
                "sha256": bundle["manifest_sha256"],
                "onnx_max_abs_err": bundle["onnx_max_abs_err"],
                "inference_ms": bundle["inference_ms"],
            }
            for bundle in mas["bundles"]
        ],
    }


def table(summary: Json) -> Table:
    """The schemes side by side."""
    table = Table(title="Three schemes, the same rounds, data and seed")
    for heading in ("", "total loss", *(letters([task]) for task in summary["tasks"]), "energy", "vs one-by-one"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_column("train s", justify="right")
    table.add_column("wall s", justify="right")
    table.add_column("MB up / down", justify="right")
    base_j = summary["schemes"]["one-by-one"]["energy_j"]
    for scheme, row in summary["schemes"].items():
        energy_j = row["energy_j"]
        ratio = f"{energy_j / base_j:.2f}" if energy_j is not None and base_j else "-"
        table.add_row(
            scheme,
            "-" if row["total_loss"] is None else f"{row['total_loss']:.3f}",
            *(f"{row['losses'][task]:.3f}" if task in row["losses"] else "-" for task in summary["tasks"]),
            joules(energy_j, row["energy_state"]),
            ratio,
            f"{row['train_s']:.0f}",
            f"{row['wall_s']:.0f}",
            f"{row['bytes_up'] / 1e6:.1f} / {row['bytes_down'] / 1e6:.1f}",
        )
    return table


def why(summary: Json, record: Json) -> str:
    """Why MAS split the tasks as it did, in a few lines."""
    decision = record["decision"]
    if not decision:
        return "MAS did not split the tasks."
    groups = " | ".join(letters(group) for group in decision["splits"])
    lines = [f"MAS split the tasks into {groups}, score {decision['score']:+.4f}, from the affinities measured while merged"]
    others = [alternative for alternative in decision["alternatives"] if alternative["splits"] != decision["splits"]]
    if others:
        runner_up = " | ".join(letters(group) for group in others[0]["splits"])
        lines.append(f"(the next best was {runner_up}, score {others[0]['score']:+.4f}).")
    return " ".join(lines)
