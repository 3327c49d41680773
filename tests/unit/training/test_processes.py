"""A step gives the same on any number of processes and in any number of parts."""

import json
import os
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from models.text_denoiser import TextDenoiser
from tests.unit.training.conftest import TINY_STAGES
from training.batches import torch_generator
from training.config import ComputeConfig, DiffusionConfig
from training.diffusion import Rows, train_step
from training.plans import check_spread
from training.presets import PRESETS
from training.processes import ComputeError, Processes

ROOT = Path(__file__).parents[3]
SCRIPTS = Path(sysconfig.get_path("scripts"))
DIFFUSION = TINY_STAGES[-1]
assert isinstance(DIFFUSION, DiffusionConfig)


def rows(num: int, with_source: bool) -> Rows:
    shape = DIFFUSION.denoiser.latent_shape
    generator = torch.Generator().manual_seed(num)
    latents, source = (torch.randn(num, *shape, generator=generator) for _ in range(2))
    length = DIFFUSION.denoiser.max_prompt_tokens
    prompts = torch.randint(3, 300, (num, length), generator=generator)
    coverage = (torch.rand(num, *shape[1:], generator=generator) > 0.5).float()
    return Rows(latents, prompts, coverage, source if with_source else None)


def gradients(batch: list[Rows], compute: ComputeConfig) -> tuple[dict[str, Tensor], dict]:
    """What a step leaves in a denoiser whose every part takes part."""
    torch.manual_seed(0)
    denoiser = TextDenoiser(DIFFUSION.denoiser)
    for parameter in denoiser.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape))
    generator = torch_generator(0, "noise", 0)
    terms = train_step(DIFFUSION, denoiser, batch, 1.5, generator, Processes(compute))
    grads = {n: p.grad for n, p in denoiser.named_parameters() if p.grad is not None}
    return grads, terms


@pytest.mark.parametrize("sizes", [(8, 0), (5, 3), (1, 1), (6, 1)])
def test_two_micro_batches_are_one_batch_of_twice_the_size(sizes: tuple[int, int]) -> None:
    batch = [rows(sizes[0], False), rows(sizes[1], True)]
    batch = [part for part in batch if len(part.latents)]
    whole, terms = gradients(batch, ComputeConfig())
    split, split_terms = gradients(batch, ComputeConfig(micro_batches=2))
    assert split.keys() == whole.keys()
    scale = max(float(grad.abs().max()) for grad in whole.values())
    for name, grad in whole.items():
        assert torch.allclose(split[name], grad, rtol=0, atol=1e-6 * scale), name
    assert split_terms == pytest.approx(terms, rel=1e-6)


@pytest.mark.parametrize(("num_processes", "micro_batches"), [(1, 1), (2, 1), (3, 2), (4, 3)])
@pytest.mark.parametrize("num_rows", [1, 7, 24])
def test_every_row_is_computed_once(
    num_processes: int, micro_batches: int, num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = torch.arange(num_rows)
    found = []
    for rank in range(num_processes):
        processes = Processes(ComputeConfig(micro_batches=micro_batches))
        processes.num_processes, processes.rank = num_processes, rank
        found += [index[part] for part in processes.parts()]
    assert torch.cat(found).sort().values.equal(index)
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_bf16_gives_nearly_the_gradients_of_fp32() -> None:
    batch = [rows(5, False), rows(3, True)]
    whole, terms = gradients(batch, ComputeConfig())
    half, half_terms = gradients(batch, ComputeConfig(precision="bf16"))
    assert half_terms["loss"] == pytest.approx(terms["loss"], rel=0.02)
    assert half_terms["loss"] != terms["loss"]
    for name, grad in whole.items():
        assert half[name].dtype == torch.float32
        assert float((half[name] - grad).norm()) < 0.1 * float(grad.norm()) + 1e-6, name


def test_a_gpu_that_is_not_there_is_said() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ComputeError, match=r"compute.device is gpu, and torch sees no CUDA"):
        Processes(ComputeConfig(device="gpu"))


def test_a_stage_that_cannot_be_spread_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain, pivot = PRESETS["stickers-pretrain"], PRESETS["stickers-pivot"]
    check_spread(pretrain)
    with pytest.raises(ComputeError, match=r"stage pretrain runs in one process .*micro_batches"):
        check_spread(replace(pretrain, compute=ComputeConfig(micro_batches=2)))
    with pytest.raises(ComputeError, match=r"stage pivot computes its batch in one part"):
        check_spread(replace(pivot, compute=ComputeConfig(micro_batches=2)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ComputeError, match="2 processes"):
        check_spread(pretrain)
    check_spread(pivot)
    check_spread(PRESETS["stickers-diffusion"])


# From here on: the real command in processes of its own.

TRAIN = ["-m", "tests.unit.training.train_tiny"]

# Gloo's threads can abort a process of PyTorch that has done all and ends: only then once more.
# https://github.com/pytorch/pytorch/pull/179291
ends_with_gloo = pytest.mark.flaky(
    reruns=2, only_rerun=["terminate called without an active exception"]
)


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}


def finish(*arguments: str) -> str:
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=environment(), cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def weights(run: Path) -> dict[str, Tensor]:
    paths = sorted((run / "checkpoint").glob("*.safetensors"))
    return {f"{p.stem}/{key}": value for p in paths for key, value in load_file(p).items()}


def last_terms(run: Path) -> dict[str, float]:
    line = json.loads((run / "curves.jsonl").read_text().splitlines()[-1])
    return {key: value for key, value in line.items() if key != "samples_per_s"}


@ends_with_gloo
@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "launcher",
    [
        ("torchrun", "--standalone", "--nproc-per-node=2"),
        # On a CPU, accelerate wants MPI; its launcher for GPUs starts the same processes without.
        ("accelerate", "launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"),
    ],
    ids=lambda launcher: launcher[0],
)
def test_two_processes_train_as_one(
    launcher: tuple[str, ...], tiny_runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_runs / "tiny-bridge", tmp_path / "tiny-bridge")
    script, *options = launcher
    arguments = [*TRAIN, "tiny-diffusion", "--root", str(tmp_path)]
    output = finish(str(SCRIPTS / script), *options, *arguments)
    assert {"process 0 of 2", "process 1 of 2"} <= set(output.splitlines())
    assert output.count("tiny-diffusion: 4 steps done") == 1  # the second process is silent

    one, two = (root / "tiny-diffusion" for root in (tiny_runs, tmp_path))
    assert last_terms(two) == pytest.approx(last_terms(one), abs=1e-5)
    expected, found = weights(one), weights(two)
    assert found.keys() == expected.keys()
    largest = max(
        float((found[name] - value).abs().max())
        for name, value in expected.items()
        if not name.startswith("optimizer/")
    )
    assert largest < 1e-5
