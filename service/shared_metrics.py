"""Counters that several processes keep together, in files that outlive each of them.

A process that is started again goes on with its predecessor's numbers, so no counter ever falls.
"""

import os
from collections.abc import Iterable
from typing import Any

from prometheus_client import REGISTRY, Metric, values
from prometheus_client.multiprocess import MultiProcessCollector

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"  # the library reads it too
_COUNTED = ("counter", "histogram")


def share_metrics(index: int) -> None:
    """Keep this process's counters in the directory of DIRECTORY_VARIABLE. Before any are made.

    Args:
        index: that no other living process has.
    """
    make_class: Any = values.MultiProcessValue
    values.ValueClass = make_class(process_identifier=lambda: index)


def collect() -> Iterable[Metric]:
    """All metrics of this process, or, of several that share theirs, what is true of all.

    That is the sum of what they count, and gauges that each sets to the same values; what only
    describes one process, such as its memory, is left out.
    """
    directory = os.environ.get(DIRECTORY_VARIABLE)
    if directory is None:
        return REGISTRY.collect()
    make_collector: Any = MultiProcessCollector
    counted = make_collector(None, path=directory).collect()
    own = [family for family in REGISTRY.collect() if family.name.startswith("rpiae_")]
    return [
        *(family for family in own if family.type not in _COUNTED),
        *(family for family in counted if family.type in _COUNTED),
    ]
