"""Where and how the steps of a run are computed."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Where and how a step is computed; the batch, and so the result, stays that of one process."""

    device: Literal["cpu", "gpu"] = "cpu"
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 computes products in bfloat16; weights, gradients and optimizer stay float32."""
    cpu_kernels: Literal["torch", "onednn"] = "torch"
    """On a CPU, in fp32: who computes linear layers. onednn is faster on processors of AMD."""
    micro_batches: int = 1
    """Parts of its batch that a process computes one after another, adding up their gradients."""
    num_gpus: int = 0
    """GPUs that the preset is meant for, for the dry run; 0: not stated."""
    gpu_tflops: float = 0.0
    """TFLOP/s that one of them sustains in training, for the dry run's hours."""

    def __post_init__(self) -> None:
        if self.micro_batches < 1:
            raise ValueError(f"micro_batches must be >= 1, got {self.micro_batches}")
        if self.num_gpus < 0 or self.gpu_tflops < 0:
            raise ValueError(
                "num_gpus and gpu_tflops must not be negative, "
                f"got {self.num_gpus} and {self.gpu_tflops}"
            )
