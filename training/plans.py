"""What `rpiae train <preset>` runs: one stage, one bundle step, or the whole chain."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from training.bundling import BUNDLES, BundleConfig
from training.comparison.variants import PREFIX, VARIANTS, all_runs
from training.config import ComputeConfig, DenoiserRunConfig, RunConfig
from training.overrides import OverrideError, apply_overrides
from training.presets import PRESETS, STICKERS
from training.processes import ComputeError, num_processes
from training.run import Run

Step = RunConfig | BundleConfig

# Stages that share their batch among processes, on a GPU and in bf16 where asked for.
SPREAD_STAGES = ("pivot", "bridge", "decoder", "joint", "diffusion", "class_diffusion")
# Those that compute their part of it in micro-batches; stages 1 and 3, and joint, weigh losses by
# gradients of the whole batch.
MICRO_BATCH_STAGES = ("diffusion", "class_diffusion")

PLANS: dict[str, tuple[Step, ...]] = {
    "stickers": (*STICKERS.values(), *BUNDLES.values()),
    **{name: (config,) for name, config in PRESETS.items()},
    **{name: (config,) for name, config in BUNDLES.items()},
    PREFIX: all_runs(list(VARIANTS.values())),
    **{f"{PREFIX}-{name}": variant.runs for name, variant in VARIANTS.items()},
    **{run.name: (run,) for run in all_runs(list(VARIANTS.values()))},
}


def of_seed(name: str, seed: int) -> str:
    """The name that a run, or a bundle's folder, has with a seed."""
    return f"{name}-seed{seed}" if seed else name


def with_seed(step: Step, seed: int) -> Step:
    """The step with another seed; its name and those it starts from say so, for all but seed 0."""
    if isinstance(step, BundleConfig):
        changed = ("name", "bundle", "directory", "diffusion", "decoder")
        values = {field: getattr(step, field) for field in changed}
        return replace(
            step, **{field: name and of_seed(name, seed) for field, name in values.items()}
        )
    changes: dict[str, Any] = {"name": of_seed(step.name, seed), "seed": seed}
    if step.after is not None:
        changes["after"] = of_seed(step.after, seed)
    if isinstance(step, DenoiserRunConfig) and step.start_from in PLANS:
        changes["start_from"] = of_seed(step.start_from, seed)
    return replace(step, **changes)


def find_plan(preset: str, overrides: Sequence[str], seed: int | None = None) -> tuple[Step, ...]:
    """The steps of a preset, its fields changed as `overrides` say, all of one seed if given.

    Raises:
        OverrideError: no such preset, an override that does not fit, or overrides of a chain.
    """
    if preset not in PLANS:
        raise OverrideError(f"no preset {preset!r}; there are {', '.join(PLANS)}")
    steps = PLANS[preset]
    if overrides and len(steps) > 1:
        names = ", ".join(step.name for step in steps)
        raise OverrideError(f"--set changes one step, and {preset} has several: {names}")
    changed = tuple(apply_overrides(step, overrides) for step in steps)
    return changed if seed is None else tuple(with_seed(step, seed) for step in changed)


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
