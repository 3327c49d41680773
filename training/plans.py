"""What `rpiae train <preset>` runs: one stage, one bundle step, or the whole chain."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from training.bundling import BUNDLES, BundleConfig
from training.config import ComputeConfig, RunConfig
from training.overrides import OverrideError, apply_overrides
from training.presets import PRESETS, STICKERS
from training.processes import ComputeError, num_processes
from training.run import Run

Step = RunConfig | BundleConfig

# Stages that share their batch among processes, on a GPU and in bf16 where asked for.
SPREAD_STAGES = ("pivot", "bridge", "decoder", "diffusion")
# Those that compute their part of it in micro-batches; stages 1 and 3 weigh losses by gradients of
# the whole batch.
MICRO_BATCH_STAGES = ("diffusion",)

PLANS: dict[str, tuple[Step, ...]] = {
    "stickers": (*STICKERS.values(), *BUNDLES.values()),
    **{name: (config,) for name, config in PRESETS.items()},
    **{name: (config,) for name, config in BUNDLES.items()},
}


def find_plan(preset: str, overrides: Sequence[str]) -> tuple[Step, ...]:
    """The steps of a preset, its fields changed as `overrides` say.

    Raises:
        OverrideError: no such preset, an override that does not fit, or overrides of a chain.
    """
    if preset not in PLANS:
        raise OverrideError(f"no preset {preset!r}; there are {', '.join(PLANS)}")
    steps = PLANS[preset]
    if overrides and len(steps) > 1:
        names = ", ".join(step.name for step in steps)
        raise OverrideError(f"--set changes one step, and {preset} has several: {names}")
    return tuple(apply_overrides(step, overrides) for step in steps)


def stage_main(config: RunConfig) -> Callable[[Any, Run], None]:
    """The function that trains the config's stage."""
    main: Callable[[Any, Run], None] = importlib.import_module(f"training.{config.stage}").main
    return main


def check_spread(config: RunConfig) -> None:
    """Refuse what a stage would ignore.

    Raises:
        ComputeError: several processes, or fields of `compute`, for a stage that cannot use them.
    """
    if config.stage in SPREAD_STAGES:
        if config.compute.micro_batches > 1 and config.stage not in MICRO_BATCH_STAGES:
            raise ComputeError(
                f"{config.name}: stage {config.stage} computes its batch in one part, without "
                f"compute.micro_batches={config.compute.micro_batches}; use more processes"
            )
        return
    compute, plain = config.compute, ComputeConfig()
    used = ("device", "precision", "micro_batches")
    asked = [f"compute.{name}" for name in used if getattr(compute, name) != getattr(plain, name)]
    if num_processes() > 1:
        asked.append(f"{num_processes()} processes")
    if asked:
        raise ComputeError(
            f"{config.name}: stage {config.stage} runs in one process on the CPU, without "
            f"{', '.join(asked)}; only {', '.join(SPREAD_STAGES)} can be spread"
        )
