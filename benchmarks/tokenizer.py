"""Encode, decode and one denoising step at paper scale, against the plain eager port.

    python -m benchmarks.tokenizer [--dims tests/data/parity/config.json] [--rounds 5]

Both sides run the same random weights of the published layout: `reference_port` as the reference
computes, ours as the service runs it (on a CPU with packed layers; on a GPU also in bfloat16 with
torch.compile, which captures CUDA graphs). Outputs are compared first; then the sides take turns,
and a ratio is that of their medians. Prints a table, writes results/tokenizer.json and the section
in README.md.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import reference_port
from benchmarks.readme import write_section
from export.dims import PublishedDims
from models.autoencoder import RPiAE
from models.class_denoiser import ClassDenoiser
from models.packed_linear import pack_linears
from models.published import NameMap, class_denoiser_map, tokenizer_map
from models.weights import without_weights
from tests.published_files import published_tensors
from training.provenance import git_revision, hardware, short_revision, versions

RESULTS = Path(__file__).parent / "results" / "tokenizer.json"
BATCHES = (1, 8)
SEED = 0
# Largest relative difference of float32 results that are the same but for rounding.
TOLERANCE = 1e-3

Call = Callable[[], Tensor]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One call at one batch size.

    error: largest difference over the port's largest value; seconds: medians; ratio: port / ours;
    spread: lowest and highest ratio of neighbouring runs.
    """

    call: str
    batch: int
    variant: str
    error: float
    port_s: float
    ours_s: float
    ratio: float
    spread: tuple[float, float]


@dataclass(frozen=True)
class Contest:
    """One call, as the port does it and as ours does in one or more variants."""

    call: str
    batch: int
    port: Call
    variants: dict[str, Call]


def measure(contest: Contest, rounds: int) -> Iterator[Row]:
    """Compare outputs, then time the sides in turns.

    Raises:
        RuntimeError: a float32 output differs by more than rounding.
    """
    expected = contest.port()
    scale = float(expected.abs().max())
    errors = {
        name: float((call().float() - expected).abs().max()) / scale
        for name, call in contest.variants.items()
    }
    for name, error in errors.items():
        if "float32" in name and error > TOLERANCE:
            raise RuntimeError(f"{contest.call}, {name}: differs by {error:.1e} from the port")
    sides = {"port": contest.port, **contest.variants}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, call in sides.items():
            seconds[name].append(timed(call))
    for name, error in errors.items():
        pairs = list(zip(seconds["port"], seconds[name], strict=True))
        port_s, ours_s = (statistics.median(side) for side in zip(*pairs, strict=True))
        ratios = [port / ours for port, ours in pairs]
        yield Row(
            call=contest.call,
            batch=contest.batch,
            variant=name,
            error=error,
            port_s=port_s,
            ours_s=ours_s,
            ratio=port_s / ours_s,
            spread=(min(ratios), max(ratios)),
        )


def timed(call: Call) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def tokenizer_contests(
    dims: PublishedDims, device: str, batches: Sequence[int]
) -> Iterator[Contest]:
    model = without_weights(lambda: RPiAE(dims.autoencoder()))
    weights = load(model, tokenizer_map(model), device)
    variants = prepare(model, device)
    generator = torch.Generator().manual_seed(SEED)
    side = model.config.image_size
    for batch in batches:
        images = torch.rand(batch, 3, side, side, generator=generator).to(device)
        latents = torch.randn(batch, *model.latent_shape, generator=generator).to(device)
        yield Contest(
            "encode",
            batch,
            lambda images=images: reference_port.encode(images, weights, dims)[0],
            variants(lambda images=images: model.encode(images).latent_dist.mean),
        )
        yield Contest(
            "decode",
            batch,
            lambda latents=latents: reference_port.decode(latents, weights, dims),
            variants(lambda latents=latents: model.decode(latents).sample),
        )


def denoiser_contests(
    dims: PublishedDims, device: str, batches: Sequence[int]
) -> Iterator[Contest]:
    model = without_weights(lambda: ClassDenoiser(dims.denoiser()))
    weights = load(model, class_denoiser_map(model), device)
    variants = prepare(model, device)
    generator = torch.Generator().manual_seed(SEED)
    for batch in batches:
        x = torch.randn(batch, *model.config.latent_shape, generator=generator).to(device)
        t = torch.rand(batch, generator=generator).to(device)
        labels = torch.arange(batch, device=device)
        inputs = (x, t, labels)
        yield Contest(
            "denoising step",
            batch,
            lambda inputs=inputs: reference_port.velocity(*inputs, weights, dims),
            variants(lambda inputs=inputs: model(*inputs)),
        )


def load(model: nn.Module, names: NameMap, device: str) -> dict[str, Tensor]:
    """Give the model random weights; the same in the published layout."""
    weights = published_tensors(model, names, SEED)
    ours = names.to_ours(weights, model.state_dict(), "random weights")
    model.load_state_dict(ours, assign=True)
    model.to(device).eval().requires_grad_(False)
    return {name: tensor.to(device) for name, tensor in weights.items()}


def prepare(model: nn.Module, device: str) -> Callable[[Call], dict[str, Call]]:
    """Function that gives the ways in which ours runs a call."""
    if device == "cpu":
        pack_linears(model)
        return lambda call: {"float32": call}

    def on_gpu(call: Call) -> dict[str, Call]:
        compiled = torch.compile(call, mode="reduce-overhead")  # captures CUDA graphs

        def in_bfloat16() -> Tensor:
            with torch.autocast("cuda", dtype=torch.bfloat16):
                return compiled().clone()

        return {"float32": call, "bfloat16, compiled, CUDA graphs": in_bfloat16}

    return on_gpu


def markdown(report: dict[str, Any]) -> str:
    """What stands in the README: the ratios, then how they were measured."""
    lines = [
        "| call | batch | ours | port | ratio (lowest to highest) | difference |",
        "|---|---:|---:|---:|---|---:|",
    ]
    for fields in report["rows"]:
        row = Row(**fields)
        low, high = row.spread
        cells = (
            f"{row.call}, {row.variant}",
            f"{row.batch}",
            f"{row.ours_s:.3g} s",
            f"{row.port_s:.3g} s",
            f"**{row.ratio:.2f}** ({low:.2f} to {high:.2f})",
            f"{row.error:.0e}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    machine = report["hardware"]
    place = machine.get("gpu", f"{machine['processor']}, {machine['cores']} cores")
    note = (
        f"Seconds are medians of {report['rounds']} runs in turns; {place}, "
        f"{machine['threads']} threads, torch {report['versions']['torch']}, revision "
        f"`{short_revision(report['revision'])}`."
    )
    return "\n".join(lines) + "\n\n" + note


def run(dims: PublishedDims, rounds: int, batches: Sequence[int] = BATCHES) -> dict[str, Any]:
    """The whole report; prints each row when it is there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows: list[Row] = []
    with torch.inference_mode():
        for contests in (tokenizer_contests, denoiser_contests):
            for contest in contests(dims, device, batches):
                for row in measure(contest, rounds):
                    print(
                        f"{row.call:15} {row.batch:3}  {row.variant:32} {row.ours_s:8.3f} s  "
                        f"{row.port_s:8.3f} s  {row.ratio:5.2f}x",
                        flush=True,
                    )
                    rows.append(row)
    return {
        "revision": git_revision(),
        "hardware": hardware(),
        "versions": versions(),
        "rounds": rounds,
        "rows": [asdict(row) for row in rows],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dims", type=Path, help="other sizes; then no results are written")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    arguments = parser.parse_args()
    dims = PublishedDims() if arguments.dims is None else PublishedDims.read(arguments.dims)
    report = run(dims, arguments.rounds, arguments.batches)
    if arguments.dims is None:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        write_section("tokenizer", markdown(report))


if __name__ == "__main__":
    main()
