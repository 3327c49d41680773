"""What a worker shows of its GPU, by a double of pynvml for one device."""

import sys
import threading
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
from prometheus_client import REGISTRY

from service.gpu_metrics import Gpu, gpu_metrics, gpu_uuid

UUID = "5e1c3a52-5d0e-8e0b-6f2b-7b1f0c9d2a44"
UTILIZATION = "rpiae_gpu_utilization_ratio"
MEMORY = "rpiae_gpu_memory_bytes"
MEMORY_LIMIT = "rpiae_gpu_memory_limit_bytes"
ENERGY = "rpiae_gpu_energy_joules_total"


class Nvml(ModuleType):
    """The functions of pynvml that are called here, for one device with a settable state.

    missing: names of the functions that this device does not support.
    """

    NVMLError = pynvml.NVMLError

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.percent = 93
        self.millijoules = 7_612_345_678
        self.missing: set[str] = set()
        self.kind = "GPU"
        self.num_open = 0

    def nvmlInit(self) -> None:
        self.num_open += 1

    def nvmlShutdown(self) -> None:
        self.num_open -= 1

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != f"{self.kind}-{UUID}":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:
        self._check(handle, "nvmlDeviceGetUtilizationRates")
        return SimpleNamespace(gpu=self.percent, memory=41)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:
        self._check(handle, "nvmlDeviceGetMemoryInfo")
        return SimpleNamespace(total=85_520_809_984, free=71_000_000_000, used=14_520_809_984)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self._check(handle, "nvmlDeviceGetTotalEnergyConsumption")
        return self.millijoules

    def _check(self, handle: str, name: str) -> None:
        assert handle == "handle"
        assert self.num_open == 1
        if name in self.missing:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    double = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", double)
    return double


def shown(name: str, worker: str) -> float | None:
    return REGISTRY.get_sample_value(name, {"worker": worker})


def await_value(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_the_double_has_only_what_pynvml_has() -> None:
    names = [name for name in vars(Nvml) if name.startswith("nvml")]
    assert len(names) == 6
    assert all(callable(getattr(pynvml, name)) for name in names)


@pytest.mark.parametrize("uuid", [UUID, f"GPU-{UUID}"])
def test_it_is_read_again_and_again(nvml: Nvml, uuid: str) -> None:
    worker = f"busy {uuid}"
    with gpu_metrics(worker, uuid, period_s=0.01):
        await_value(lambda: shown(UTILIZATION, worker) == 0.93)
        assert shown(MEMORY, worker) == 14_520_809_984
        assert shown(MEMORY_LIMIT, worker) == 85_520_809_984
        assert shown(ENERGY, worker) == 0  # what was used before is not this worker's
        nvml.percent, nvml.millijoules = 7, nvml.millijoules + 250_500
        await_value(lambda: shown(ENERGY, worker) == 250.5)
        await_value(lambda: shown(UTILIZATION, worker) == 0.07)
    assert nvml.num_open == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "gpu"]


def test_energy_never_falls(nvml: Nvml) -> None:
    nvml.nvmlInit()
    gpu = Gpu(nvml, "handle", "reloaded")
    for millijoules in (5000, 9000, 1000, 3000):  # between them the driver was loaded anew
        nvml.millijoules = millijoules
        gpu.read()
    assert shown(ENERGY, "reloaded") == 4 + 2


def test_a_part_of_a_gpu_shows_what_it_supports(nvml: Nvml) -> None:
    nvml.kind = "MIG"
    nvml.missing = {"nvmlDeviceGetUtilizationRates", "nvmlDeviceGetTotalEnergyConsumption"}
    with gpu_metrics("part", UUID):
        await_value(lambda: shown(MEMORY, "part") == 14_520_809_984)
    assert shown(UTILIZATION, "part") is None
    assert shown(ENERGY, "part") is None


def test_a_device_that_falls_silent_shows_no_old_numbers(nvml: Nvml) -> None:
    nvml.nvmlInit()
    gpu = Gpu(nvml, "handle", "silent")
    gpu.read()
    assert shown(MEMORY, "silent") == 14_520_809_984
    nvml.missing = {"nvmlDeviceGetMemoryInfo"}
    gpu.read()
    gpu.read()
    assert shown(MEMORY, "silent") is None
    assert shown(MEMORY_LIMIT, "silent") is None
    assert shown(UTILIZATION, "silent") == 0.93


def test_without_a_gpu_or_its_library_nothing_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (gpu_uuid(0) is None) is not torch.cuda.is_available()
    with gpu_metrics("cpu", None):
        pass
    with gpu_metrics("no driver", UUID):  # the real pynvml, without NVIDIA's library
        pass
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with gpu_metrics("not installed", UUID):
        pass
    for worker in ("cpu", "no driver", "not installed"):
        assert shown(MEMORY, worker) is None
        assert shown(ENERGY, worker) is None


def test_a_device_that_nvml_does_not_know_is_left_out(nvml: Nvml) -> None:
    with gpu_metrics("foreign", "GPU-00000000-0000-0000-0000-000000000000"):
        assert nvml.num_open == 1
    assert nvml.num_open == 0
    assert shown(MEMORY, "foreign") is None
