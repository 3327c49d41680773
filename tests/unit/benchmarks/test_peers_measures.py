"""What the comparison with other servers reckons, and what it says of it."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from benchmarks import serving_peers
from benchmarks.peers.arrivals import (
    PATH,
    STEPS,
    at_rate,
    balanced_plan,
    make_arrivals,
    read_arrivals,
    write_arrivals,
)
from benchmarks.peers.loads import Scale
from benchmarks.peers.measures import attainment, rate, solo_key, summary
from benchmarks.peers.offline import full_rate
from benchmarks.peers.processes import MODULES, OURS
from benchmarks.peers.tuning import TUNED, trials
from benchmarks.peers.verdicts import judge, measures, verdicts
from benchmarks.serving_load import MIXED_TASKS, Planned, Sample
from benchmarks.serving_peers_table import draw, markdown, panels

ROOT = Path(__file__).parents[3]
PEERS = ROOT / "benchmarks" / "peers"
MAX_ADAPTER_LINES = 80


def sample(at_s: float, latency_s: float, *, steps: int = 10, status: int = 200) -> Sample:
    planned = Planned(at_s=at_s, task="generate", steps=steps, seed=0)
    return Sample(planned=planned, latency_s=latency_s, late_s=0.0, status=status)


def test_attainment_counts_pictures_in_three_times_their_own_time() -> None:
    solo_s = {"generate 10": 1.0, "generate 50": 5.0}
    samples = [
        sample(0, 3.0),
        sample(0, 3.001),
        sample(0, 15.0, steps=50),
        sample(0, 1.0, status=503),
        Sample(
            planned=Planned(at_s=0, task="encode", steps=10, seed=0),
            latency_s=100.0,
            late_s=0.0,
            status=200,
        ),
    ]
    assert solo_key(samples[2].planned) == "generate 50"
    assert attainment(samples, solo_s) == 2 / 4
    with pytest.raises(ValueError, match="one picture"):
        attainment(samples[-1:], solo_s)


def test_a_rate_counts_answers_while_the_load_lasts() -> None:
    """By when they came, not by when they were sent; failures and late ones do not count."""
    samples = [
        sample(0, 0.9),
        sample(0, 1.0),
        sample(1, 1.9),
        sample(2, 1.1),
        sample(2, 0.5, status=500),
    ]
    assert rate(samples, 1.0, 3.0) == 2 / 2
    with pytest.raises(ValueError, match="begin_s"):
        rate(samples, 1.0, 1.0)


@pytest.mark.parametrize("end_s", [9.5, 10.5, 11.9])
def test_a_rate_does_not_depend_on_where_a_batch_ends(end_s: float) -> None:
    batches = [sample(0, at_s + i / 1000) for at_s in range(0, 20, 2) for i in range(8)]
    assert rate(batches, 1.0, end_s) == pytest.approx(4.0, rel=0.01)
    steady = [sample(0, i / 5) for i in range(100)]
    assert rate(steady, 1.0, end_s) == pytest.approx(5.0)
    assert rate(batches, 1.0, 2.5) == 8 / 1.5


def test_a_summary_leaves_out_the_warm_up_and_keeps_what_was_given_up() -> None:
    samples = [sample(0.5, 50.0), *(sample(1 + i / 100, i / 100) for i in range(1, 100))]
    samples.append(sample(1.0, 9.0, status=0))
    found = summary(samples, seconds=3.0, warm_s=1.0, solo_s={"generate 10": 1.0})
    assert (found["requests"], found["given_up"], found["failed"]) == (100, 1, 0)
    assert (found["p50_s"], found["p95_s"], found["p99_s"]) == (0.5, 0.95, 0.99)
    assert found["per_s"] == pytest.approx(50, rel=0.01)  # one each 0.02 s
    assert found["slo"] == 0.99
    assert "slo" not in summary(samples, seconds=3.0, warm_s=1.0)


def test_the_engines_rate_is_that_of_full_batches() -> None:
    """Filling up and running empty take longer for each work."""
    middle = [10 + 0.1 * i for i in range(80)]
    finished = [0.5 * i for i in range(20)] + middle + [20 + i for i in range(20)]
    assert full_rate(finished) == pytest.approx(10, rel=0.02)


def test_the_arrivals_file_is_what_its_script_makes(tmp_path: Path) -> None:
    write_arrivals(tmp_path / "again.csv", make_arrivals())
    assert (tmp_path / "again.csv").read_bytes() == PATH.read_bytes()
    arrivals = read_arrivals()
    assert arrivals == make_arrivals()
    assert {one.steps for one in arrivals} == set(STEPS)


def test_every_sixty_requests_of_a_closed_loop_have_the_shares_of_the_mix() -> None:
    plan = balanced_plan()
    for begin in (0, 60, 600):
        block = plan[begin : begin + 60]
        for task, share in MIXED_TASKS.items():
            steps = [one.steps for one in block if one.task == task]
            assert len(steps) == round(60 * share)
            assert len({steps.count(number) for number in STEPS}) == 1
    assert plan == balanced_plan()
    assert [one.task for one in plan[:60]] != [one.task for one in plan[60:120]]


def test_a_load_is_the_same_arrivals_faster() -> None:
    arrivals = read_arrivals()
    faster = at_rate(arrivals, 10.0, 30.0)
    assert [one.seed for one in faster] == list(range(len(faster)))
    assert len(faster) == pytest.approx(300, rel=0.15)
    assert faster[-1].at_s < 30
    assert faster[5].at_s == pytest.approx(arrivals[5].at_s / 10)
    with pytest.raises(ValueError, match="do not last"):
        at_rate(arrivals, 1000.0, 30.0)


def test_capacity_is_the_best_servers_and_bearable_the_best_others() -> None:
    capacities = {OURS: 10.0, "litserve": 5.0, "fastapi-lock": 1.0}
    assert serving_peers.rates_of(capacities, Scale(loads=(0.5, 1.2))) == {
        "0.5 of capacity": 5.0,
        "1.2 of capacity": 12.0,
        "bearable": 4.0,
    }
    # Where another server is the best, 0.8 of its capacity is a share already.
    scale = Scale(loads=(0.8,))
    assert serving_peers.rates_of({OURS: 4.0, "litserve": 5.0}, scale) == {"0.8 of capacity": 4.0}
    assert serving_peers.rates_of(capacities, scale.on("null")) == {}


_KEYS = ("per_s", "p50_s", "p95_s", "p99_s", "late_p99_s", "slo", "cpu_s_per_answer")


def load(**changed: float) -> dict[str, float]:
    found = dict.fromkeys(_KEYS, 1.0)
    return found | {"given_up": 0, "failed": 0, "memory_bytes": 2**30} | changed


def report(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """Ours against two others at a load; p99 as given, in each repeat."""
    runs = {
        OURS: [{"loads": {"0.8 of capacity": load(p99_s=p99)}} for p99 in ours],
        "litserve": [{"loads": {"0.8 of capacity": load(p99_s=p99)}} for p99 in theirs],
        "bentoml": [{"loads": {"0.8 of capacity": load(p99_s=100.0)}} for _ in theirs],
    }
    saturated = {
        name: [
            {
                "ready_s": 3.0,
                "loads": {"1 client": load(), "8 clients": load(), "encode raw": load()},
            }
        ]
        for name in runs
    }
    return {
        "bundle": "stickers",
        "device": "emulated",
        "command": "python -m benchmarks.serving_peers",
        "arrivals": "arrivals.csv",
        "scale": vars(Scale()),
        "settings": {"litserve": TUNED["litserve"]},
        "revision": "0" * 40,
        "hardware": {"processor": "a processor", "cores": 2},
        "versions": {"torch": "2"},
        "offline": {"per_s": 2.0},
        "differences": {OURS: 0},
        "capacities": dict.fromkeys(runs, 1.0),
        "rates": {"0.8 of capacity": 0.8},
        "saturated": saturated,
        "arrived": runs,
    }


@pytest.mark.parametrize(
    ("ours", "theirs", "outcome", "gain"),
    [
        ([1.0, 1.1, 1.2], [2.2, 2.3, 2.1], "ahead", 2.0),
        ([2.2, 2.3, 2.1], [1.0, 1.1, 1.2], "behind", 0.5),
        ([1.0, 1.1, 2.2], [2.1, 2.2, 2.3], "even", 2.0),
        ([1.0], [1.04], "even", 1.04),
    ],
)
def test_who_is_ahead_follows_from_the_numbers(
    ours: list[float], theirs: list[float], outcome: str, gain: float
) -> None:
    found = report(ours, theirs)
    (measure,) = (one for one in measures(found) if one.name.startswith("99th"))
    verdict = judge(found, measure)
    assert verdict is not None
    assert (verdict.outcome, verdict.server) == (outcome, "litserve")
    assert verdict.gain == pytest.approx(gain)
    text = verdicts(found)
    assert ("**Another server is ahead of the service**" in text) == (outcome == "behind")


def test_a_load_that_no_other_server_was_sent_has_no_verdict() -> None:
    found = report([1.0], [2.0])
    found["arrived"] = {OURS: found["arrived"][OURS]}
    assert [judge(found, one) for one in measures(found) if one.name.startswith("99th")] == [None]
    assert draw(found).width > 0


def test_the_text_has_every_figure_and_its_command() -> None:
    text = markdown(report([1.0, 1.5, 2.0], [3.0, 3.0, 3.0]), "plot.png")
    assert "| 0.8 of capacity, 0.8/s | rpiae | 1/s (1/s to 1/s) |" in text
    assert "1.50 s (1.00 s to 2.00 s)" in text
    assert "99th percentile, 0.8 of capacity: 1.50 s, litserve 3.00 s (2.00 times as good)" in text
    assert "`python -m benchmarks.serving_peers`" in text
    assert all(len(line) <= 100 for line in text.splitlines() if not line.startswith(("|", "-")))


@pytest.mark.parametrize("server", MODULES)
def test_an_adapter_is_short_and_tells_its_settings(server: str) -> None:
    lines = (PEERS / f"{MODULES[server]}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < MAX_ADAPTER_LINES
    docstring = "\n".join(lines).split('"""')[1]
    assert "Settings:" in docstring
    assert [name for name in TUNED[server] if f"`{name}`" not in docstring] == []
    assert TUNED[server] in trials(server)


def test_the_other_servers_are_pinned_and_no_part_of_the_project() -> None:
    lines = (PEERS / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = {
        one.name.lower(): str(one.specifier)
        for one in (Requirement(line) for line in lines if line and not line.startswith("#"))
    }
    assert all(pin.startswith("==") for pin in pins.values())
    assert "torchvision" not in pins
    ours = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    constraints = {
        one.name.lower(): str(one.specifier)
        for one in (Requirement(line) for line in ours if line and not line.startswith("#"))
    }
    other = [name for name, pin in pins.items() if constraints.get(name, pin) != pin]
    allowed = ("certifi", "grpcio", "opentelemetry")
    assert [name for name in other if not name.startswith(allowed)] == []
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert not any(name in str(project) for name in ("litserve", "bentoml", "ray["))


def test_the_plot_shows_the_heaviest_load_that_others_were_sent() -> None:
    found = report([1.0], [2.0])
    found["rates"]["1.2 of capacity"] = 1.2
    for runs in found["arrived"].values():
        runs[0]["loads"]["1.2 of capacity"] = load(per_s=9.0)
    assert panels(found)[0].title == "answers/s, 1.2 of capacity"
    for name in ("litserve", "bentoml"):
        del found["arrived"][name][0]["loads"]["1.2 of capacity"]
    assert panels(found)[0].title == "answers/s, 0.8 of capacity"
    assert all(panel.from_zero for panel in panels(found))
