"""What NVML tells of a worker's GPU, read every second; nothing where there is no NVML or no GPU.

It counts all that uses the GPU, while the engine's own figures (rpiae_device_*) count this worker.
It was tested against a double of pynvml and has not run on a GPU.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from typing import Any, TypeVar

import torch

from service import metrics
from service.log import get_logger

log = get_logger(__name__)

ValueT = TypeVar("ValueT")

_PERIOD_S = 1.0
_KINDS = ("GPU", "MIG")  # a whole device, or a part of one that CUDA shows as a device


def gpu_uuid(index: int) -> str | None:
    """UUID of the GPU that the worker of this index computes on; None: on a CPU."""
    if not torch.cuda.is_available():
        return None
    return str(torch.cuda.get_device_properties(index % torch.cuda.device_count()).uuid)


@contextmanager
def gpu_metrics(worker: str, uuid: str | None, period_s: float = _PERIOD_S) -> Iterator[None]:
    """Keep the GPU's metrics up to date on a thread of their own, if there is a GPU to ask.

    Args:
        worker: label of the metrics.
        uuid: of the device, as CUDA gives it; None: the worker runs on a CPU.
        period_s: between two readings.
    """
    with _open_nvml(uuid) as opened:
        if opened is None:
            yield
            return
        gpu = Gpu(*opened, worker)
        stopping = threading.Event()
        thread = threading.Thread(target=_repeat, args=(gpu.read, stopping, period_s), name="gpu")
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


class Gpu:
    """One device and the metrics that it sets.

    Args:
        nvml: the module pynvml, initialised.
        handle: of the device.
        worker: label of the metrics.
    """

    def __init__(self, nvml: Any, handle: Any, worker: str) -> None:
        self._nvml = nvml
        self._handle = handle
        self._worker = worker
        self._millijoules: int | None = None  # at the last reading
        self._refused: set[str] = set()

    def read(self) -> None:
        """Set every metric that the device supports; parts of a GPU and older ones lack some."""
        nvml, worker = self._nvml, self._worker
        rates = self._ask(nvml.nvmlDeviceGetUtilizationRates)
        memory = self._ask(nvml.nvmlDeviceGetMemoryInfo)
        millijoules = self._ask(nvml.nvmlDeviceGetTotalEnergyConsumption)
        for gauge, value in (
            (metrics.GPU_UTILIZATION_RATIO, rates and rates.gpu / 100),
            (metrics.GPU_MEMORY_BYTES, memory and memory.used),
            (metrics.GPU_MEMORY_LIMIT_BYTES, memory and memory.total),
        ):
            if value is not None:
                gauge.labels(worker).set(value)
            else:  # the last known number would look alive
                with suppress(KeyError):
                    gauge.remove(worker)
        if millijoules is not None:
            self._count_energy(millijoules)

    def _count_energy(self, millijoules: int) -> None:
        """The device counts since its driver was loaded, the metric since the worker started."""
        before = millijoules if self._millijoules is None else self._millijoules
        self._millijoules = millijoules
        counter = metrics.GPU_ENERGY_JOULES.labels(self._worker)
        counter.inc(
            max(0, millijoules - before) / 1000
        )  # less than before: the driver was reloaded

    def _ask(self, call: Callable[[Any], ValueT]) -> ValueT | None:
        """The device's answer, or None where it gives none, which is logged once."""
        try:
            return call(self._handle)
        except self._nvml.NVMLError as error:
            if call.__name__ not in self._refused:
                self._refused.add(call.__name__)
                log.info("NVML does not tell", call=call.__name__, reason=str(error))
            return None


@contextmanager
def _open_nvml(uuid: str | None) -> Iterator[tuple[Any, Any] | None]:
    """The module, initialised, and the device's handle; None without one of them."""
    if uuid is None:
        yield None
        return
    try:
        nvml = import_module("pynvml")
    except ImportError:
        log.info("no metrics of the GPU: nvidia-ml-py is not installed, it comes with rpiae[gpu]")
        yield None
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        log.info("no metrics of the GPU", reason=str(error))
        yield None
        return
    try:
        handle = _find(nvml, uuid)
        yield None if handle is None else (nvml, handle)
    finally:
        nvml.nvmlShutdown()


def _find(nvml: Any, uuid: str) -> Any:
    """The device's handle, or None; CUDA's numbers of devices are not NVML's, the UUIDs are."""
    bare = uuid.partition("-")[2] if uuid.startswith(_KINDS) else uuid
    for kind in _KINDS:
        try:
            return nvml.nvmlDeviceGetHandleByUUID(f"{kind}-{bare}")
        except nvml.NVMLError as error:
            reason = str(error)
    log.info("no metrics of the GPU", uuid=uuid, reason=reason)
    return None


def _repeat(call: Callable[[], None], stopping: threading.Event, period_s: float) -> None:
    while True:
        call()
        if stopping.wait(period_s):
            return
