"""How fast stickers are drawn on one core.

    python -m benchmarks.data [--scenes 5000]

Counts whole samples: a scene with its picture and caption, a scene with its picture and labels,
an edit triple with both pictures. Sprites and backgrounds are warm, as they are after the first
seconds of training.
"""

import argparse
import time
from collections.abc import Callable

import numpy as np

from training.captions import caption
from training.edits import sample_edit
from training.rendering import patch_labels, render
from training.stickers import FULL_WORLD, SHAPES_WORLD, World, sample_scene

WORLDS = {"shapes": SHAPES_WORLD, "full": FULL_WORLD}


def draw_captioned(rng: np.random.Generator, world: World) -> None:
    scene = sample_scene(rng, world)
    render(scene)
    caption(scene, rng)


def draw_labelled(rng: np.random.Generator, world: World) -> None:
    scene = sample_scene(rng, world)
    patch_labels(scene, render(scene))


def draw_edit(rng: np.random.Generator, world: World) -> None:
    triple = sample_edit(rng, world)
    render(triple.source)
    render(triple.target)


SAMPLES: dict[str, Callable[[np.random.Generator, World], None]] = {
    "picture and caption": draw_captioned,
    "picture and labels": draw_labelled,
    "edit triple": draw_edit,
}


def samples_per_second(
    draw: Callable[[np.random.Generator, World], None], world: World, num_samples: int
) -> float:
    """Speed after as many samples of warming up."""
    rng = np.random.default_rng(0)
    for _ in range(num_samples):
        draw(rng, world)
    start = time.perf_counter()
    for _ in range(num_samples):
        draw(rng, world)
    return num_samples / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=5000, help="samples per measurement")
    num_samples = parser.parse_args().scenes
    print(f"{'world':8} {'sample':26} {'per second':>10}")
    for world_name, world in WORLDS.items():
        for sample_name, draw in SAMPLES.items():
            speed = samples_per_second(draw, world, num_samples)
            print(f"{world_name:8} {sample_name:26} {speed:10,.0f}")


if __name__ == "__main__":
    main()
