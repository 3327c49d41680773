"""The optimisation profiles of engines: pure arithmetic on the axes of the graphs."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from export.graphs import Graph
from models.manifest import Precision

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""Input -> its shape, all axes."""

MAX_ROWS = 32
_STEPS = {"velocity", "guide_velocity"}
_OTHER_BUCKETS = (1, 4, 16)  # of graphs that run once or twice for a picture


def row_buckets(graph: str, max_rows: int) -> tuple[int, ...]:
    """The sizes of batches that an engine is built for, ascending, the last being `max_rows`.

    Powers of two where every step of every picture passes through, as the scheduler fills batches
    up to those; fewer elsewhere.

    Raises:
        ValueError: max_rows is below 1.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows must be >= 1, got {max_rows}")
    if graph not in _STEPS:
        return tuple(sorted({min(rows, max_rows) for rows in _OTHER_BUCKETS}))
    powers = (2**exponent for exponent in range(max_rows.bit_length()))
    return tuple(sorted({*powers, max_rows}))


def profiles(graph: Graph, max_rows: int) -> list[Shapes]:
    """The shapes of each profile, one for each bucket of rows.

    The smallest, the best and the largest shape of a profile are one: prompts and contexts have
    their largest length, to which the service pads them anyway, so that every kernel is chosen for
    the very shapes that it runs on, and a CUDA graph can be recorded of it.
    """
    largest = {name: shapes[-1] for name, shapes in graph.profile().items()}
    return [
        {name: (rows, *shape[1:]) for name, shape in largest.items()}
        for rows in row_buckets(graph.name, max_rows)
    ]


def trtexec_command(
    source: Path,
    plan: Path,
    shapes: Sequence[Shapes],
    *,
    precision: Precision,
    workspace_bytes: int,
    timing_cache: Path,
) -> str:
    """The line that builds the same engine with NVIDIA's own program, quoted for a shell."""
    words = [
        "trtexec",
        f"--onnx={source}",
        f"--saveEngine={plan}",
        "--stronglyTyped",
        "--decomposableAttentions=*",
        f"--memPoolSize=workspace:{workspace_bytes >> 20}M",
        f"--timingCacheFile={timing_cache}",
        "--skipInference",
    ]
    if precision == "fp32":
        words.append("--noTF32")
    for index, profile in enumerate(shapes):
        spec = ",".join(f"{name}:{'x'.join(map(str, s))}" for name, s in profile.items())
        words += [f"--profile={index}", f"--minShapes={spec}", f"--optShapes={spec}"]
        words.append(f"--maxShapes={spec}")
    return shlex.join(words)
