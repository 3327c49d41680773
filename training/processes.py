"""The processes that compute one run together, and the device and precision of each.

Started by `torchrun` or `accelerate launch`; without them a run is one process. Every process draws
the whole batch from (seed, step) and takes its rows, so the batch is the same for any number of
them; gradients are summed once per step. That, and not a wrapper around the module, because a step
has several backward passes, through other calls than `forward`.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState
from torch import Tensor, nn

from training.config import ComputeConfig
from training.onednn import has_onednn, use_onednn

# Longer than the encoding of a pool, which one process does while the others wait.
_TIMEOUT = timedelta(hours=3)
_BUCKET_VALUES = 2**26  # 256 MiB of float32


class ComputeError(ValueError):
    """The machine lacks what the config asks for, or a stage cannot be spread."""


def num_processes() -> int:
    """Processes of the run, as the launcher says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first_process() -> bool:
    """Whether this is the process that writes checkpoints and logs."""
    return int(os.environ.get("RANK", "0")) == 0


def wait_for_all() -> None:
    """Return when every process has come here."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def leave() -> None:
    """Take leave of the other processes, at the end of a command."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Processes:
    """This process among those of the run.

    device: where its modules belong. rank: from 0; the first one writes.
    """

    def __init__(self, config: ComputeConfig) -> None:
        """Joins the others, which takes all of them.

        Raises:
            ComputeError: the config asks for a GPU or for kernels that are not there.
        """
        self.config = config
        self.num_processes, self.rank = num_processes(), int(os.environ.get("RANK", "0"))
        self.device = torch.device("cpu")
        if config.device == "gpu":
            if not torch.cuda.is_available():
                raise ComputeError("compute.device is gpu, and torch sees no CUDA device here")
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(self.device)
        if config.cpu_kernels == "onednn" and not has_onednn():
            raise ComputeError("compute.cpu_kernels is onednn, and this build of torch has none")
        if self.num_processes > 1:
            PartialState(cpu=config.device == "cpu", timeout=_TIMEOUT)

    def place(self, module: nn.Module) -> None:
        """Move a module to the device and let it compute as the config says."""
        module.to(self.device)
        if self.config.cpu_kernels == "onednn" and self.device.type == "cpu":
            use_onednn(module)

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints and logs."""
        return self.rank == 0

    def parts(self) -> list[slice]:
        """Rows of a batch that this process computes, one part after another.

        Strided, so that each part has its share of every kind of row.
        """
        stride = self.num_processes * self.config.micro_batches
        begin = self.rank * self.config.micro_batches
        return [slice(begin + index, None, stride) for index in range(self.config.micro_batches)]

    def rows(self, batch_size: int) -> list[int]:
        """Rows of a batch that this process computes, where it computes them in one part.

        Raises:
            ComputeError: the batch has fewer rows than there are processes.
        """
        if batch_size < self.num_processes:
            raise ComputeError(
                f"batch_size {batch_size} is less than the {self.num_processes} processes"
            )
        return list(range(batch_size)[self.rank :: self.num_processes])

    def autocast(self) -> AbstractContextManager[object]:
        """Context of a forward pass, in the config's precision."""
        enabled = self.config.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    @contextmanager
    def first_before_others(self) -> Iterator[None]:
        """The first process does what is inside; the others do it when it is done."""
        if not self.is_first:
            wait_for_all()
        yield
        if self.is_first:
            wait_for_all()

    def sum(self, values: Tensor) -> Tensor:
        """Sum over processes of values of one shape."""
        if self.num_processes == 1:
            return values
        total = values.to(self.device, copy=True)
        torch.distributed.all_reduce(total)
        return total.to(values.device)

    def norm(self, rows: Tensor) -> Tensor:
        """Norm of a tensor of which each process holds some rows."""
        if self.num_processes == 1:
            return rows.norm()
        return self.sum(rows.square().sum()).sqrt()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace gradients by their sums over processes.

        Losses are divided by the rows of the whole batch, so sums are what one process would have.
        A parameter without a gradient anywhere stays without, as the optimizer skips those.
        """
        if self.num_processes == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        present = torch.tensor([float(p.grad is not None) for p in trained])
        used = [p for p, count in zip(trained, self.sum(present).tolist(), strict=True) if count]
        for bucket in _buckets(used):
            grads = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in bucket]
            flat = self.sum(torch.cat([grad.flatten() for grad in grads]))
            pieces = flat.split([p.numel() for p in bucket])
            for parameter, piece in zip(bucket, pieces, strict=True):
                parameter.grad = piece.view_as(parameter)


def _buckets(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """Neighbouring parameters, so many that a message is worth sending."""
    bucket: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        bucket.append(parameter)
        size += parameter.numel()
        if size >= _BUCKET_VALUES:
            yield bucket
            bucket, size = [], 0
    if bucket:
        yield bucket
