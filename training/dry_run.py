"""`rpiae train --dry-run`: parameters, FLOPs, memory and hours of a stage, with nothing trained."""

import os
from dataclasses import dataclass

from rich.table import Table
from torch import nn

from training.config import RunConfig
from training.stage_cost import stage_parts
from training.stage_parts import StageParts

_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Estimate:
    """parameters: by module, with whether they are trained. part_size: samples that one process
    computes at a time. FLOPs: of the whole batch, of all steps, before the first step.
    memory: bytes of one process by use.
    """

    parameters: dict[str, tuple[int, bool]]
    part_size: int
    flops_per_step: int
    flops_once: int
    memory: dict[str, int]

    @property
    def memory_bytes(self) -> int:
        """Of one process, without temporary buffers."""
        return sum(self.memory.values())


def estimate(config: RunConfig, num_processes: int) -> Estimate:
    """What a stage needs on so many processes; builds it on the meta device."""
    parts = stage_parts(config)
    part_size = -(-config.batch_size // (num_processes * config.compute.micro_batches))
    cost = parts.step_cost(config.batch_size, part_size)
    return Estimate(
        parameters=_parameters(parts),
        part_size=part_size,
        flops_per_step=cost.flops,
        flops_once=parts.once_flops(),
        memory=_memory(parts, cost.activation_bytes, config.compute.precision == "bf16"),
    )


def _parameters(parts: StageParts) -> dict[str, tuple[int, bool]]:
    found: dict[str, tuple[int, bool]] = {}
    for name, module in parts.trained.items():
        frozen = _count(module, False)
        found[name] = (_count(module, True), True)
        if frozen:
            found[f"{name}, frozen part"] = (frozen, False)
    return found | {
        name: (_count(module, True) + _count(module, False), False)
        for name, module in parts.frozen.items()
    }


def _count(module: nn.Module, trained: bool) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad is trained)


def _memory(parts: StageParts, activation_bytes: int, half: bool) -> dict[str, int]:
    """Bytes by use: everything float32, but activations and weight copies of bf16 half of that."""
    counts = _parameters(parts).values()
    trained, frozen = (
        _FLOAT_BYTES * sum(count for count, is_trained in counts if is_trained is kind)
        for kind in (True, False)
    )
    memory = {
        "weights": trained,
        "gradients": trained,
        "optimizer (two moments)": 2 * trained,
        "averaged weights": trained if parts.averaged else 0,
        "frozen weights": frozen,
        "activations": activation_bytes // 2 if half else activation_bytes,
        "bfloat16 copies of weights": trained // 2 if half else 0,
    }
    return {use: size for use, size in memory.items() if size}


def dry_run_tables(config: RunConfig) -> list[Table]:
    """The estimate as tables: modules, a step, memory."""
    num_processes = config.compute.num_gpus or int(os.environ.get("WORLD_SIZE", "1"))
    found = estimate(config, num_processes)
    modules = Table("module", "parameters", "", title=f"{config.name}: modules")
    for name, (count, trained) in found.parameters.items():
        modules.add_row(name, f"{count:,}", "trained" if trained else "frozen")
    run = Table("run", "", title=f"{config.name}: run")
    for name, value in _run_rows(config, found, num_processes):
        run.add_row(name, value)
    memory = Table("memory of a process", "MiB", title=f"{config.name}: memory")
    for use, size in found.memory.items():
        memory.add_row(use, f"{size / 2**20:,.1f}")
    memory.add_row("sum, without temporary buffers", f"{found.memory_bytes / 2**20:,.1f}")
    memory.caption = "activations: what autograd keeps with fused attention; half of it for bf16"
    return [modules, run, memory]


def _run_rows(config: RunConfig, found: Estimate, num_processes: int) -> list[tuple[str, str]]:
    compute = config.compute
    total = config.steps * found.flops_per_step + found.flops_once
    rows = [
        ("steps", f"{config.steps:,}"),
        ("samples", f"{config.steps * config.batch_size:,}"),
        ("processes", str(num_processes)),
        ("samples that a process computes at a time", str(found.part_size)),
        ("GFLOPs per step", f"{found.flops_per_step / 1e9:,.2f}"),
        ("GFLOPs before the first step", f"{found.flops_once / 1e9:,.2f}"),
        ("PFLOPs of the run", f"{total / 1e15:,.4g}"),
    ]
    if compute.num_gpus and compute.gpu_tflops:
        hours = total / (compute.num_gpus * compute.gpu_tflops * 1e12) / 3600
        stated = f"{compute.num_gpus} GPUs of {compute.gpu_tflops:g} TFLOP/s"
        rows.append((f"hours on {stated}", f"{hours:,.2f}"))
    return rows
