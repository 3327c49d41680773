"""The example of deploy/README.md's capacity formula follows from what was measured."""

import json
import math
import re
import statistics
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = 2  # of a picture with guidance
LOAD = 0.7


def test_the_example_is_computed_from_the_results() -> None:
    text = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8").replace("\n", " ")
    found = re.search(
        r"does ([\d.]+) pictures per second over HTTP, of (\d+) to (\d+) steps and ([\d.]+) on "
        r"average,.*which is (\d+) row steps\. For (\d+) such pictures per second: "
        r"(\d+) \* ([\d.]+) / \((\d+) \* ([\d.]+)\) = ([\d.]+), so (\w+) workers",
        text,
    )
    assert found is not None
    rate, fewest, most, steps, row_steps, wanted, *terms, quotient, word = found.groups()
    results = json.loads((ROOT / "benchmarks/results/serving_efficiency.json").read_text())
    (measured,) = (
        rates
        for name, rates in results["throughput"]["rates"]["torch"].items()
        if name.startswith("over HTTP") and "all of the worker" in name
    )
    assert float(rate) == round(statistics.median(measured), 1)
    wanted_steps = results["steps"]
    mean = statistics.mean(wanted_steps)
    assert [int(fewest), float(steps), int(most)] == [min(wanted_steps), mean, max(wanted_steps)]
    cost = ROWS * float(steps)
    assert int(row_steps) == round(float(rate) * cost)
    assert [float(term) for term in terms] == [int(wanted), cost, int(row_steps), LOAD]
    workers = int(wanted) * cost / (int(row_steps) * LOAD)
    assert float(quotient) == round(workers, 1)
    assert word == ("one", "two", "three", "four", "five")[math.ceil(workers) - 1]
