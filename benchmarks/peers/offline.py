"""The engine alone on a device, without server, queue and HTTP: what serving costs is told by it.

    python -m benchmarks.peers.offline --device emulated --pictures 100

Prints JSON: `per_s`, the mixed requests in a second when all are there at once, and `solo_s`, the
seconds that a picture of each kind takes alone. No files are read or written.
"""

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.peers.arrivals import STEPS, balanced_plan
from benchmarks.peers.device import MAX_ROWS, load_backend
from benchmarks.peers.measures import solo_key
from benchmarks.peers.tuning import Device
from benchmarks.serving_load import Planned
from models.manifest import Manifest, read_manifest
from service.engine.calibration import calibrate
from service.engine.engine import Engine
from service.engine.work import DecodeWork, EncodeWork, Failed, Finished, PictureWork, Work

SOLO_RUNS = 3


def to_work(planned: Planned, manifest: Manifest) -> Work:
    """What the engine is to do for a request of the plan."""
    job_id = str(planned.seed)
    if planned.task == "decode":
        return DecodeWork(id=job_id, latents=torch.zeros(1, *manifest.latent_shape))
    grey = planned.seed % 256
    image = torch.full((3, *manifest.image_size), grey, dtype=torch.uint8)
    if planned.task == "encode":
        return EncodeWork(id=job_id, images=image[None])
    return PictureWork(
        id=job_id,
        prompt=planned.prompt,
        seed=planned.seed,
        num_steps=planned.steps,
        sampler=manifest.sampler,
        guidance_scale=manifest.default_guidance_scale,
        image_guidance_scale=manifest.default_image_guidance_scale,
        guidance_interval=manifest.guidance_interval,
        source=image if planned.task == "edit" else None,
    )


def run_all(engine: Engine, works: Sequence[Work]) -> list[float]:
    """Seconds until each was finished, ascending."""
    started = time.perf_counter()
    for work in works:
        engine.add(work)
    finished: list[float] = []
    while engine.has_work:
        for event in engine.tick().events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                finished.append(time.perf_counter() - started)
    assert len(finished) == len(works)
    return finished


def full_rate(finished: Sequence[float]) -> float:
    """Works in a second between the first fifth and the last: all rows are taken then."""
    first, last = len(finished) // 5, len(finished) * 4 // 5
    return (last - first) / (finished[last] - finished[first])


def measure(device: Device, bundle: Path, pictures: int) -> dict[str, Any]:
    """As the module says."""
    manifest, backend = read_manifest(bundle), load_backend(device, bundle)
    calibration = calibrate(backend, max_rows=MAX_ROWS)
    engine = Engine(backend, shift=manifest.timestep_shift, calibration=calibration)
    solo_s: dict[str, float] = {}
    seed = 10**6  # none of the plan's
    for task in ("generate", "edit"):
        for steps in STEPS:
            taken = []
            for _ in range(SOLO_RUNS):
                seed += 1
                planned = Planned(at_s=0, task=task, steps=steps, seed=seed)
                taken += run_all(engine, [to_work(planned, manifest)])
            solo_s[solo_key(planned)] = statistics.median(taken)
    plan = balanced_plan()[:pictures]
    finished = run_all(engine, [to_work(one, manifest) for one in plan])
    return {"per_s": full_rate(finished), "solo_s": solo_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=get_args(Device), default="cpu")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/stickers"))
    parser.add_argument("--pictures", type=int, default=100)
    arguments = parser.parse_args()
    print(json.dumps(measure(arguments.device, arguments.bundle, arguments.pictures)))


if __name__ == "__main__":
    main()
