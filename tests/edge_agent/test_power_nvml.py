"""NVML through a stand-in for its module: the counter first, watts where there is none, and every error in words."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pynvml as real
import pytest

from edge_agent.config import PowerConfig
from edge_agent.power.nvml import AVERAGED, NvmlCounter, NvmlPower, candidates, open_gpu
from edge_agent.power.source import Count, PowerSourceError, Reading

ROOT = Path("/")


class Stub(ModuleType):
    """What this code asks of `pynvml`, for GPUs given as a row of what each supports; the errors are the real ones."""

    NVMLError = real.NVMLError

    def __init__(self, *gpus: dict[str, Any]) -> None:
        super().__init__("pynvml")
        self.gpus, self.users = list(gpus), 0
        self.refuse: dict[str, int] = {}

    def _answer(self, call: str, handle: int | None = None, key: str = "") -> Any:
        if call in self.refuse:
            raise real.NVMLError(self.refuse[call])
        assert self.users > 0, f"{call} outside of nvmlInit and nvmlShutdown"
        if handle is not None and key not in self.gpus[handle]:
            raise real.NVMLError(real.NVML_ERROR_NOT_SUPPORTED)
        return None if handle is None else self.gpus[handle][key]

    def nvmlInit(self) -> None:
        if "nvmlInit" in self.refuse:
            raise real.NVMLError(self.refuse["nvmlInit"])
        self.users += 1

    def nvmlShutdown(self) -> None:
        self.users -= 1

    def nvmlDeviceGetCount(self) -> int:
        self._answer("nvmlDeviceGetCount")
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        self._answer("nvmlDeviceGetHandleByIndex")
        if index >= len(self.gpus):
            raise real.NVMLError(real.NVML_ERROR_INVALID_ARGUMENT)
        return index

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self._answer("nvmlDeviceGetName", handle, "name")  # type: ignore[no-any-return]

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        return self._answer("energy", handle, "mj")  # type: ignore[no-any-return]

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self._answer("power", handle, "mw")  # type: ignore[no-any-return]

    def nvmlDeviceGetPowerManagementLimitConstraints(self, handle: int) -> tuple[int, int]:
        return (100_000, self._answer("limit", handle, "limit_mw"))

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return self._answer("capability", handle, "capability")  # type: ignore[no-any-return]


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Any:
    def planted(*gpus: dict[str, Any]) -> Stub:
        stub = Stub(*gpus)
        monkeypatch.setitem(sys.modules, "pynvml", stub)
        return stub

    return planted


H100 = {"name": "H100", "mj": 5_000_123, "mw": 70_000, "limit_mw": 700_000, "capability": (9, 0)}


def test_the_counter_is_preferred_and_is_in_joules(plant: Any) -> None:
    stub = plant(H100, {**H100, "mj": 7_000})
    source = open_gpu(0)
    assert isinstance(source, NvmlCounter)
    assert source.read() == Count(5000.123)
    assert open_gpu(1).read() == Count(7.0)
    assert (source.name, source.scope, source.domain, source.range_j) == ("nvml:0", "gpu", "gpu:0", None)
    assert source.max_power_w >= 700
    stub.gpus[0]["mj"] += 2500
    assert source.read() == Count(5002.623)


@pytest.mark.parametrize(
    "capability, flags",
    [((6, 1), ()), ((7, 5), ()), ((8, 0), ()), ((8, 6), (AVERAGED,)), ((9, 0), (AVERAGED,)), (None, (AVERAGED,))],
)
def test_watts_where_nothing_counts_and_a_flag_where_they_are_a_mean(
    plant: Any, capability: tuple[int, int] | None, flags: tuple[str, ...]
) -> None:
    plant({"mw": 35_500} | ({} if capability is None else {"capability": capability}))
    source = open_gpu(0)
    assert isinstance(source, NvmlPower)
    assert source.read() == Reading(35.5, flags=flags)


def test_a_gpu_that_tells_nothing_says_so_when_read(plant: Any) -> None:
    plant({"name": "old"})
    with pytest.raises(PowerSourceError, match=r"read the power of gpu:0: Not Supported; this GPU does not report it"):
        open_gpu(0).read()


def test_an_error_that_is_not_about_support_does_not_change_the_source(plant: Any) -> None:
    stub = plant(H100)
    stub.refuse["energy"] = real.NVML_ERROR_NO_PERMISSION
    with pytest.raises(PowerSourceError, match="group video"):
        open_gpu(0)
    assert stub.users == 0, "it was given back"


def test_every_gpu_is_a_source_of_its_own_and_all_is_given_back(plant: Any) -> None:
    stub = plant(H100, {**H100, "name": b"A2"})
    found = candidates(ROOT, PowerConfig())
    assert [(each.name, each.domain, each.available, each.reason) for each in found] == [
        ("nvml:0", "gpu:0", True, "GPU H100"),
        ("nvml:1", "gpu:1", True, "GPU A2"),
    ]
    assert stub.users == 0
    assert found[1].open is not None
    source = found[1].open()
    assert (source.domain, stub.users) == ("gpu:1", 1)
    source.close()
    source.close()
    assert stub.users == 0


def test_no_gpu_and_other_roots_are_told_apart(plant: Any) -> None:
    plant()
    assert candidates(ROOT, PowerConfig())[0].reason == "NVML runs, but finds no GPU"
    (elsewhere,) = candidates(Path("/tree"), PowerConfig(root="/tree"))
    assert not elsewhere.available
    assert "not what is under /tree" in elsewhere.reason


ERRORS = sorted(value for name, value in vars(real).items() if name.startswith("NVML_ERROR_"))


@pytest.mark.parametrize("code", [code for code in ERRORS if isinstance(code, int)])
def test_every_error_of_nvml_becomes_ours(plant: Any, code: int) -> None:
    stub = plant(H100)
    stub.refuse["nvmlInit"] = code
    with pytest.raises(PowerSourceError, match="cannot start NVML"):
        NvmlCounter(0)
    (absent,) = candidates(ROOT, PowerConfig())
    assert not absent.available
    assert absent.open is None
    assert absent.reason.startswith("cannot start NVML")


@pytest.mark.parametrize(
    "code, mends",
    [
        (real.NVML_ERROR_LIBRARY_NOT_FOUND, "driver is not installed"),
        (real.NVML_ERROR_DRIVER_NOT_LOADED, "modprobe nvidia"),
        (real.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "restart the machine"),
        (real.NVML_ERROR_GPU_IS_LOST, "fell off its bus"),
        (real.NVML_ERROR_UNKNOWN, "see nvidia-smi"),
    ],
)
def test_an_error_says_what_mends_it(plant: Any, code: int, mends: str) -> None:
    plant(H100).refuse["nvmlInit"] = code
    assert mends in candidates(ROOT, PowerConfig())[0].reason


def test_without_the_package_the_reason_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    (absent,) = candidates(ROOT, PowerConfig())
    assert "pip install 'mas-edge[agent]'" in absent.reason
