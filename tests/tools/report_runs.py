"""A made-up but lifelike run for the report's tests: three job records, the demo's summary, and rendered rooms."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np

from aggregator.record import Record
from models.wire.job import JobSpec
from tools.labels import edge_label, keypoint_label
from tools.report.pictures import Prediction

TASKS = ("segment_semantic", "depth_zbuffer", "normal", "keypoints2d", "edge_texture")
AGENTS = tuple(f"agent-{index}" for index in range(8))
GROUPS = (("segment_semantic", "depth_zbuffer", "normal"), ("keypoints2d", "edge_texture"))
SCHEMES = ("one-by-one", "all-in-one", "mas")
ROUNDS, MERGE_ROUNDS = 30, 9
_START = {"segment_semantic": 2.2, "depth_zbuffer": 0.95, "normal": 0.62, "keypoints2d": 0.71, "edge_texture": 0.66}
_FLOOR = {"segment_semantic": 0.92, "depth_zbuffer": 0.34, "normal": 0.21, "keypoints2d": 0.38, "edge_texture": 0.31}
_PENALTY = {"one-by-one": 1.0, "all-in-one": 1.11, "mas": 0.96}
DROPPED = {"agent": "agent-3", "reason": "no report before the deadline of 600 s"}
_WATTS = 4.0


def affinity() -> list[list[float]]:
    """Rows are sources; scene tasks help each other, picture tasks help each other, across they conflict."""
    rows = [[0.03] * len(TASKS) for _ in TASKS]
    for i, source in enumerate(TASKS):
        for j, target in enumerate(TASKS):
            if i != j:
                together = (source in GROUPS[0]) == (target in GROUPS[0])
                rows[i][j] = (0.011 if together else -0.004) + 0.004 * math.sin(3 * i + 7 * j)
    return rows


def score(splits: tuple[tuple[str, ...], ...]) -> float:
    """The published score, the slow and obvious way; every group here has at least two tasks."""
    matrix, shares = affinity(), []
    for group in splits:
        for target in group:
            others = [TASKS.index(source) for source in group if source != target]
            shares.append(sum(matrix[row][TASKS.index(target)] for row in others) / len(others))
    return sum(shares) / len(shares)


def _loss(scheme: str, task: str, done: int) -> float:
    floor = _FLOOR[task] * _PENALTY[scheme]
    wobble = 1 + 0.015 * math.sin(done * 1.7 + len(task))
    return (floor + (_START[task] - floor) * math.exp(-done / (9 if scheme != "all-in-one" else 7))) * wobble


def _split(scheme: str, name: str, tasks: tuple[str, ...], first: int, last: int, parent: str | None) -> dict[str, Any]:
    rounds = []
    for at in range(first, last + 1):
        seen = at % 5 == 4 or at == last
        losses = {task: _loss(scheme, task, at + 1) for task in tasks}
        rounds.append(
            {
                "round": at, "attempt": 0, "agents": AGENTS[at % 5 : at % 5 + 4], "samples": 384, "lr": 0.1,
                "train_losses": {task: value * 0.93 for task, value in losses.items()},
                "test_losses": losses if seen else {}, "wall_s": 1.2 + 0.5 * len(tasks),
                "dropped": [DROPPED] if at == 12 else [],
            }
        )  # fmt: skip
    return {
        "split": name, "tasks": tasks, "parent": parent, "first_round": first, "last_round": last,
        "final": last == ROUNDS - 1, "model_sha256": "ab" * 32, "rounds": rounds,
    }  # fmt: skip


def _splits(scheme: str) -> list[dict[str, Any]]:
    last = ROUNDS - 1
    if scheme == "one-by-one":
        return [_split(scheme, letter, (task,), 0, last, None) for letter, task in zip("sdnkt", TASKS, strict=True)]
    if scheme == "all-in-one":
        return [_split(scheme, "merged", TASKS, 0, last, None)]
    parts = [_split(scheme, f"split-{i}", group, MERGE_ROUNDS, last, "merged") for i, group in enumerate(GROUPS)]
    return [_split(scheme, "merged", TASKS, 0, MERGE_ROUNDS - 1, None), *parts]


def _energy(scheme: str, splits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    entries = []
    for split in splits:
        cost = len(split["rounds"]) * (2.2 + 0.55 * len(split["tasks"]))
        phases = {"train": cost, "communicate": cost * 0.09, "wait": cost * 0.05, "evaluate": cost * 0.14}
        if scheme == "mas" and split["parent"] is None:
            phases["affinity"] = cost * 0.16
        for phase, cpu_s in phases.items():
            entries.append(
                {
                    "split": split["split"], "phase": phase, "energy_j": cpu_s * _WATTS, "state": "estimated",
                    "duration_s": cpu_s * 1.1, "cpu_s": cpu_s, "source": f"cpu-time x {_WATTS:g} W per core",
                    "scope": "cpu", "reason": "",
                }
            )  # fmt: skip
    return entries


def record(scheme: str) -> dict[str, Any]:
    """One job's record, through the aggregator's own types so that it cannot drift from them."""
    splits = _splits(scheme)
    energy = _energy(scheme, splits)
    phases: dict[str, dict[str, Any]] = {}
    for entry in energy:
        known = phases.setdefault(entry["phase"], {"energy_j": 0.0, "state": "estimated"})
        known["energy_j"] += entry["energy_j"]
    losses = {task: _loss(scheme, task, ROUNDS) for task in TASKS}
    mas = scheme == "mas"
    rivals = ((TASKS[:2], TASKS[2:]), ((TASKS[0], TASKS[2]), (TASKS[1], TASKS[3], TASKS[4])))
    spec = JobSpec(name=f"demo-{scheme}", tasks=TASKS, scheme=scheme)
    built = {
        "job": f"demo-{scheme}", "spec": msgspec.to_builtins(spec),
        "state": "deployed", "reason": "", "started_at": 0.0, "finished_at": 90.0,
        "wall_s": sum(r["wall_s"] for s in splits for r in s["rounds"]) * 0.6,
        "agents": [
            {
                "agent": agent, "train_samples": 96, "test_samples": 24,
                "energy_source": "cpu-time x 4 W per core", "energy_state": "estimated",
            }
            for agent in AGENTS
        ],
        "splits": splits,
        "affinity": {"tasks": TASKS, "matrix": affinity(), "batches": 288, "rounds": MERGE_ROUNDS} if mas else None,
        "decision": {
            "splits": GROUPS, "score": score(GROUPS), "max_splits": 2,
            "alternatives": [{"splits": rival, "score": score(rival)} for rival in rivals],
        } if mas else None,
        "losses": losses, "total_loss": sum(losses.values()), "energy": energy,
        "energy_j": sum(entry["energy_j"] for entry in energy), "energy_state": "estimated", "energy_reason": "",
        "energy_by_phase": phases, "bytes_up": 61_000_000 * len(splits), "bytes_down": 48_500_000 * len(splits),
        "train_s": sum(entry["duration_s"] for entry in energy if entry["phase"] == "train"),
        "bundles": [
            {
                "agent": agent, "split": split["split"], "manifest_sha256": f"{index:02x}" * 32,
                "onnx_max_abs_err": 2.4e-6, "inference_ms": 7.3 + index,
            }
            for index, agent in enumerate(AGENTS) for split in splits if split["final"]
        ],
        "deploy_failures": [],
        "skipped": ["scenes/rgb/ash/point_3_view_0_domain_rgb.png"] if mas else [], "skipped_total": 3 if mas else 0,
    }  # fmt: skip
    return dict(msgspec.json.decode(msgspec.json.encode(msgspec.convert(built, Record))))


def records() -> dict[str, dict[str, Any]]:
    """The three schemes' records."""
    return {scheme: record(scheme) for scheme in SCHEMES}


def summary(of: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The demo's JSON for these records."""
    fields = ("total_loss", "losses", "energy_j", "energy_state", "energy_by_phase", "train_s", "wall_s")
    fields += ("bytes_up", "bytes_down")
    mas = of.get("mas", {})
    bundles = [dict(bundle) for bundle in mas.get("bundles", ())]
    for bundle in bundles:
        bundle["sha256"] = bundle.pop("manifest_sha256")
    return {
        "tasks": list(TASKS), "agents": list(AGENTS), "affinity": affinity() if mas else None,
        "splits": [list(group) for group in GROUPS] if mas else None,
        "schemes": {scheme: {name: record[name] for name in fields} for scheme, record in of.items()},
        "bundles": bundles,
    }  # fmt: skip


def host() -> dict[str, Any]:
    """What the demo says of where it ran."""
    return {
        "command": "mas demo --json demo.json", "machine": "2 x Example CPU, 4 GiB",
        "versions": {"mas-edge": "0.1.0", "python": "3.11.2", "torch": "2.13.0"},
    }  # fmt: skip


def room(seed: int, size: int = 64) -> dict[str, np.ndarray[Any, Any]]:
    """Labels of a boxy room seen from its middle, in label units: rays against the walls and three boxes."""
    rng = np.random.default_rng(seed)
    v, u = np.mgrid[0:size, 0:size] / (size / 2) - 1 + 1 / size
    ray = np.stack([u * 0.6, -v * 0.6, np.ones_like(u)], -1) + 1e-9
    half = np.array([rng.uniform(1.6, 2.6), 1.3, rng.uniform(3.0, 5.0)])
    hits = np.where(ray > 0, half, -half) / ray
    axis = hits.argmin(-1)
    t = hits.min(-1)
    classes = np.where(axis == 1, np.where(ray[..., 1] < 0, 2, 3), 1)
    normal = -np.sign(ray) * np.eye(3)[axis]
    for _ in range(3):
        low = np.array([rng.uniform(-1.4, 0.6), -1.3, rng.uniform(1.6, 2.8)])
        high = low + np.array([rng.uniform(0.5, 1.2), rng.uniform(0.4, 1.1), 0.7])
        near, far = np.minimum(low / ray, high / ray), np.maximum(low / ray, high / ray)
        enter, face = near.max(-1), near.argmax(-1)
        hit = (enter < far.min(-1)) & (enter > 0) & (enter < t)
        t, classes = np.where(hit, enter, t), np.where(hit, int(rng.integers(6, 12)), classes)
        normal = np.where(hit[..., None], -np.sign(ray) * np.eye(3)[face], normal)
    paint = rng.uniform(70, 235, (18, 3))
    tile = 1 - 0.25 * ((np.floor((ray * t[..., None]).sum(-1) * 3) % 2) == 0)
    shade = (0.45 + 0.55 * np.abs(normal @ np.array([0.3, 0.8, 0.5])))[..., None] * tile[..., None]
    rgb = np.clip(paint[classes] * shade, 0, 255).astype(np.uint8)
    return {
        "rgb": np.moveaxis(rgb, -1, 0), "segment_semantic": classes[None], "depth_zbuffer": (t * 512)[None],
        "normal": np.moveaxis((normal * 0.5 + 0.5) * 255, -1, 0),
        "keypoints2d": keypoint_label(rgb)[None], "edge_texture": edge_label(rgb)[None],
    }  # fmt: skip


def predictions(count: int = 4) -> list[Prediction]:
    """Blurred labels stand in for a model's answers."""
    rooms = [room(seed) for seed in range(count)]
    inputs = np.stack([scene["rgb"] for scene in rooms])
    names = {1: "wall", 2: "floor", 3: "ceiling", 6: "bed", 7: "sofa", 8: "chair", 9: "table", 10: "storage"}
    captions = tuple(f"oak, view {index}" for index in range(count))
    made = []
    for task in TASKS:
        truth = np.stack([scene[task] for scene in rooms])
        blurred = sum(np.roll(truth.astype(float), (dy, dx), (2, 3)) for dy in (-2, 0, 2) for dx in (-2, 0, 2)) / 9
        answer = np.roll(truth, 2, 3) if task == "segment_semantic" else blurred
        made.append(Prediction(task, inputs, truth, answer, names if task == "segment_semantic" else {}, captions))
    return made
