"""A job's record as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.tasks import letters


def joules(energy_j: float | None, state: str) -> str:
    """Joules with their state; a figure that is not known is a dash, never a zero."""
    return f"- ({state})" if energy_j is None else f"{energy_j:.0f} J ({state})"


def describe(record: Mapping[str, Any]) -> str:
    """Everything of a record that fits a screen."""
    reason = f": {record['reason']}" if record["reason"] else ""
    lines = [
        f"job       {record['job']} ({record['spec']['scheme']}), {record['state']}{reason}",
        f"wall      {record['wall_s']:.1f} s, training {record['train_s']:.1f} s over {len(record['agents'])} devices",
        f"energy    {joules(record['energy_j'], record['energy_state'])}: "
        + ", ".join(f"{phase} {joules(e['energy_j'], e['state'])}" for phase, e in record["energy_by_phase"].items()),
        f"traffic   {record['bytes_up'] / 1e6:.1f} MB up, {record['bytes_down'] / 1e6:.1f} MB down",
    ]
    for split in record["splits"]:
        origin = "" if split["parent"] is None else f", from {split['parent']}"
        rounds = f"rounds {split['first_round']}-{split['last_round']}"
        lines.append(f"split     {split['split']} [{letters(split['tasks'])}], {rounds}{origin}")
    if decision := record["decision"]:
        groups = " | ".join(letters(group) for group in decision["splits"])
        lines.append(f"decision  {groups}, score {decision['score']:+.4f}, at most {decision['max_splits']} splits")
    losses = ", ".join(f"{task} {loss:.3f}" for task, loss in record["losses"].items())
    if losses:
        lines.append(f"losses    {losses}; total {record['total_loss']:.3f}")
    lines += [
        f"bundle    {b['split']} on {b['agent']}: {b['manifest_sha256'][:12]}, ONNX error {b['onnx_max_abs_err']:.1e}, "
        f"{b['inference_ms']:.1f} ms"
        for b in record["bundles"]
    ]
    lines += [f"failed    {f['split']} on {f['agent']}: {f['reason']}" for f in record["deploy_failures"]]
    if record["skipped_total"]:
        lines.append(f"skipped   {record['skipped_total']} broken samples: {', '.join(record['skipped'][:5])}")
    return "\n".join(lines)
