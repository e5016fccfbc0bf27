"""Which executor a simulation gets: by what the user asked for and what this machine has."""

from __future__ import annotations

import os

import torch

from tools.simulate.inprocess import in_process
from tools.simulate.memory import pictures_bytes
from tools.simulate.pool import Executor, ExecutorError
from tools.simulate.processes import processes
from tools.simulate.worker import Device, Precision, WorkerSettings

#: Of each worker on a cluster, whose machines are not known here.
_RAY_CACHE_BYTES = 2**30


def open_executor(
    *, device: str = "auto", precision: Precision = "fp32", workers: int | None = None, ray: str = ""
) -> Executor:
    """An executor, to be closed by the caller.

    On a GPU one worker in this process. On a CPU a process for each core, or as many as `workers` says; one worker
    stays in this process. With `ray` (an address, or "local") as many as the cluster has cores, or `workers`.
    Raises ExecutorError.
    """
    chosen = _device(device, bool(ray))
    lanes = workers or (1 if chosen == "cuda" else _cores())
    if ray:
        from tools.simulate.ray_lanes import on_ray

        return on_ray(ray, WorkerSettings(chosen, precision, cache_bytes=_RAY_CACHE_BYTES), workers)
    settings = WorkerSettings(chosen, precision, cache_bytes=pictures_bytes(chosen, lanes))
    return in_process(settings) if lanes == 1 else processes(settings, lanes)


def _device(asked: str, on_ray: bool) -> Device:
    if asked == "cuda" and not on_ray and not torch.cuda.is_available():
        raise ExecutorError("torch finds no CUDA device here; use --device cpu, or install a build of torch for it")
    if asked not in ("auto", "cpu", "cuda"):
        raise ExecutorError(f"unknown device {asked!r}; use auto, cpu or cuda")
    if asked == "cuda" or (asked == "auto" and not on_ray and torch.cuda.is_available()):
        return "cuda"
    return "cpu"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
