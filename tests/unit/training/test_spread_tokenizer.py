"""The tokenizer stages give the same on two processes as on one, also with a batch of odd size."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.training.conftest import TINY_STAGES, StageRunner
from tests.unit.training.test_processes import (
    SCRIPTS,
    TRAIN,
    ends_with_gloo,
    finish,
    last_terms,
)
from training.augment import augment
from training.config import AutoencoderConfig, ComputeConfig
from training.losses import noise_tokens
from training.processes import ComputeError, Processes

CHANGES = {
    "batch_size": 3,
    "gan_weight": 0.75,
    "discriminator_start": 1,
    "gan_start": 2,
    "ema_decay": 0.9,
}
STAGES = [config for config in TINY_STAGES if isinstance(config, AutoencoderConfig)]


@ends_with_gloo
@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("config", "pivot_norms_at"),
    [*((config, "tokens") for config in STAGES), (STAGES[0], "fc2")],
    ids=lambda value: value if isinstance(value, str) else value.stage,
)
def test_two_processes_train_as_one(
    config: AutoencoderConfig,
    pivot_norms_at: str,
    tiny_runs: Path,
    run_stage: StageRunner,
    tmp_path: Path,
) -> None:
    assert config.after is not None
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        shutil.copytree(tiny_runs / config.after, root / config.after)
    changes = CHANGES | {"pivot_norms_at": pivot_norms_at}
    run_stage(replace(config, **changes), one)
    settings = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    finish(
        str(SCRIPTS / "torchrun"),
        "--standalone",
        "--nproc-per-node=2",
        *TRAIN,
        config.name,
        "--root",
        str(two),
        *settings,
    )
    found, expected = (last_terms(root / config.name) for root in (two, one))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)
    if config.stage != "bridge":
        assert {"gan", "gan_weight", "discriminator"} <= expected.keys()


@pytest.mark.parametrize("config", STAGES, ids=lambda config: config.stage)
def test_bf16_gives_nearly_the_losses_of_fp32(
    config: AutoencoderConfig, tiny_runs: Path, run_stage: StageRunner, tmp_path: Path
) -> None:
    assert config.after is not None
    terms = []
    for precision in ("fp32", "bf16"):
        root = tmp_path / precision
        shutil.copytree(tiny_runs / config.after, root / config.after)
        compute = ComputeConfig(precision=precision)
        run_stage(replace(config, **CHANGES, pivot_norms_at="fc2", compute=compute), root)
        terms.append(last_terms(root / config.name))
    whole, half = terms
    assert half.keys() == whole.keys()
    for name in {"image", "loss", "discriminator"} & whole.keys():
        assert half[name] == pytest.approx(whole[name], rel=0.05)
        assert half[name] != whole[name]


def draws() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("rows", [slice(0, None, 2), slice(1, None, 2)])
def test_what_is_drawn_for_a_row_does_not_depend_on_who_computes_it(rows: slice) -> None:
    tokens, images = torch.rand(5, 4, 6), torch.rand(5, 3, 16, 16)
    noised = noise_tokens(tokens[rows], 0.8, draws(), rows, 5)
    assert noised.equal(noise_tokens(tokens, 0.8, draws())[rows])
    torch.testing.assert_close(
        augment(images[rows], draws(), rows, 5), augment(images, draws())[rows]
    )


def test_norms_are_those_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.rand(5, 4)
    processes = Processes(ComputeConfig())
    assert processes.norm(whole).equal(whole.norm())
    processes.num_processes, processes.rank = 2, 1
    other = whole[0::2].square().sum()

    def add_other(values: Tensor) -> Tensor:
        return values + other

    monkeypatch.setattr(processes, "sum", add_other)
    torch.testing.assert_close(processes.norm(whole[processes.rows(5)]), whole.norm())
    assert processes.rows(5) == [1, 3]
    with pytest.raises(ComputeError, match="batch_size 1 is less than the 2 processes"):
        processes.rows(1)
