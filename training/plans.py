"""What `rpiae train <preset>` runs: one stage, one bundle step, or the whole chain."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from training.bundling import BUNDLES, BundleConfig
from training.config import RunConfig
from training.overrides import OverrideError, apply_overrides
from training.presets import PRESETS
from training.run import Run

Step = RunConfig | BundleConfig

PLANS: dict[str, tuple[Step, ...]] = {
    "stickers": (*PRESETS.values(), *BUNDLES.values()),
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
