"""`rpiae train` of the tiny stages, for tests that need processes of their own.

Run: python -m tests.unit.training.train_tiny tiny-diffusion --root runs
"""

import os
import sys

import typer

from tests.unit.training.conftest import TINY_STAGES
from training import bridge, decoder, latents, pivot, plans, pretrain
from training.cli import train_command
from training.processes import num_processes


def main() -> None:
    """The command, with presets of the tiny stages."""
    for stage in (pretrain, pivot, bridge, decoder):
        stage.INIT_IMAGES = 16
    latents.SHARD_SIZE = 16
    for config in TINY_STAGES:
        plans.PLANS[config.name] = (config,)
    rank = int(os.environ.get("RANK", "0"))
    sys.stdout.write(f"process {rank} of {num_processes()}\n")
    typer.run(train_command)


if __name__ == "__main__":
    main()
