"""What a bundle draws, how well, and how it was trained, as Markdown from its own records."""

from collections.abc import Sequence
from typing import Any

from models.manifest import Manifest

_PROMPTS = {
    "one_shape": "one shape",
    "two_shapes": "two shapes",
    "count_of_two": "two equal shapes",
    "count_of_three": "three equal shapes",
    "one_thing": "one everyday thing",
}
_GENEVAL = {
    "single_object": "single object",
    "two_objects": "two objects",
    "counting": "counting",
    "colors": "colours",
    "position": "position",
    "color_attribution": "colour attribution",
}
_LOSSES = {"perceptual": "perceptual term", "discriminator": "discriminator"}
_KINDS_OF_DRAWING = {
    "shapes": "shapes",
    "things": "everyday things",
    "colors": "colours",
    "sizes": "sizes",
    "positions": "places",
    "background_styles": "backgrounds",
    "scenes": "background scenes",
    "edit_kinds": "edits",
}


def _rate(rate: dict[str, float]) -> str:
    low, high = round(100 * rate["low"]), round(100 * rate["high"])
    return f"{100 * rate['rate']:.1f} % ({low} to {high})"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def quality_table(report: dict[str, Any]) -> str:
    """Prompt following, edits, reconstruction and more as measured, with 95 % intervals."""
    prompts = [
        [
            f"{_PROMPTS.get(name, name)} ({row['num_prompts']})",
            *(_rate(row[verdict]) for verdict in ("loose", "background", "strict")),
        ]
        for name, row in report["prompts"].items()
    ]
    edits = [
        [
            f"{kind} ({row['num_edits']})",
            _rate(row["change"]),
            _rate(row["target"]),
            f"{row['unchanged_psnr_db']:.1f} dB ({row['round_trip_psnr_db']:.1f} dB)",
        ]
        for kind, row in report["edits"].items()
    ]
    parts = [_table(["prompts", "shown, in colour", "background", "strictly"], prompts)]
    parts += _geneval(report)
    if edits:
        heading = ["edits", "change made", "strictly", "rest kept (encoded and decoded alone)"]
        parts.append(_table(heading, edits))
    parts.append(_reconstruction(report))
    parts += _tokens_and_pictures(report)
    return "\n\n".join(parts)


def _geneval(report: dict[str, Any]) -> list[str]:
    """Table of GenEval's categories and what it leaves out, where the report has them."""
    found = report.get("geneval")
    if not found:
        return []
    rows = [[_GENEVAL.get(name, name), _rate(rate)] for name, rate in found["categories"].items()]
    rows.append([f"mean of {len(rows)}", _rate(found["overall"])])
    heading = [f"GenEval's categories ({found['num_prompts']} prompts each)", "right"]
    parts = [_table(heading, rows)]
    if found["absent"]:
        absent = ", ".join(_GENEVAL.get(name, name) for name in found["absent"])
        parts.append(f"Not among what the model was trained to draw: {absent}.")
    return parts


def _reconstruction(report: dict[str, Any]) -> str:
    found, weights = report["reconstruction"], report.get("lpips_weights")
    lpips = f", LPIPS {found['lpips']:.4f} ({' and '.join(weights)})" if weights else ""
    return (
        f"Reconstruction of {found['num_scenes']} scenes: PSNR {found['psnr_db']:.1f} dB, "
        f"SSIM {found['ssim']:.3f}{lpips}."
    )


def _losses(manifest: Manifest) -> list[str]:
    """A list of what each run's losses looked through, for those that recorded it."""
    lines = []
    for stage in manifest.training["stages"]:
        if used := stage.get("used"):
            words = [f"{_LOSSES.get(name, name)}: {value}" for name, value in used.items()]
            lines.append(f"- {stage['name']}: {'; '.join(words)}")
    return ["\n".join(lines)] if lines else []


def _tokens_and_pictures(report: dict[str, Any]) -> list[str]:
    """Sentences on the linear probe and the Frechet distance, where the report has them."""
    sentences = []
    if probe := report.get("linear_probe"):
        rates = [f"{name} {_rate(rate)}" for name, rate in probe.items() if isinstance(rate, dict)]
        sentences.append(
            f"Linear probe of the encoder's tokens, {probe['num_train_scenes']} scenes to learn "
            f"from, {probe['num_test_scenes']} others to be tested on: {', '.join(rates)}."
        )
    for key in ("frechet", "frechet_inception"):
        if not (frechet := report.get(key)):
            continue
        sentences.append(
            f"Frechet distance in {frechet['features']} of {frechet['num_pictures']} pictures from "
            f"{frechet['num_references']} true ones: {frechet['distance']:.2f}; of as many true "
            f"pictures {frechet['true_pictures']:.2f}."
        )
    return sentences


def _processor(hardware: dict[str, Any], unit: str) -> str:
    number = hardware[unit]
    return f"{hardware['processor']}, {number} {unit if number > 1 else unit.removesuffix('s')}"


def circumstances(report: dict[str, Any]) -> str:
    """How the figures came about, in two sentences."""
    hardware, options = report["hardware"], report["options"]
    machine = hardware.get("gpu") or _processor(hardware, "threads")
    return (
        "Held-out samples, judged from pixels by fixed rules; in brackets the number of samples, "
        "and 95 % intervals. Strictly: exactly the asked items and nothing else, each in its "
        "colour, size and place, on the right background. "
        f"{options['num_steps']} steps, guidance scale {options['guidance_scale']:g}, "
        f"seed {report['seed']}; {machine}, torch {report['versions']['torch']}, "
        f"revision {report['revision'][:10]}."
    )


def drawn(manifest: Manifest) -> str:
    """List of what the model was trained to draw."""
    lines = [
        f"- {label}: {', '.join(manifest.draws[field])}"
        for field, label in _KINDS_OF_DRAWING.items()
        if manifest.draws.get(field)
    ]
    lines.append(f"- at most {manifest.draws['max_items']} items in a picture")
    return "\n".join(lines)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def _stage_table(stages: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            stage["name"],
            str(stage["config"]["stage"]),
            f"{stage['steps']:,}",
            f"{stage['samples']:,}",
            _minutes(stage["seconds"]),
            ", ".join(f"{key} {value:.3g}" for key, value in stage["last"].items()),
        ]
        for stage in stages
    ]
    return _table(["run", "stage", "steps", "samples", "time", "last means"], rows)


def model_card(manifest: Manifest, report: dict[str, Any]) -> str:
    """The bundle's README: what it draws, how well, how it was trained."""
    training = manifest.training
    hardware = training["hardware"]
    machine = hardware.get("gpu") or _processor(hardware, "cores")
    size = sum(file.bytes for file in manifest.files) / 2**20
    height, width = manifest.image_size
    parts = [
        f"# {manifest.name}",
        f"{manifest.description} Pictures of {width} x {height} pixels; {size:.1f} MiB; "
        f"{manifest.licence}. This file is written by `python -m training.readme`.",
        "## What it draws",
        drawn(manifest),
        "## Measured",
        quality_table(report),
        circumstances(report),
        "[report.json](report.json) has every figure. The first held-out samples, unchosen; where "
        "the judge found something wrong, the words are red:",
        "![samples](samples.png)",
        "## How it was trained",
        _stage_table(training["stages"]),
        *_losses(manifest),
        f"On {machine}, torch {training['versions']['torch']}, revision "
        f"{training['revision'][:10]}. Times are those of the steps, without making the data pool. "
        "The manifest holds every stage's settings; `rpiae train stickers` repeats them.",
    ]
    return "\n\n".join(parts) + "\n"
