"""The driver of the comparison against real servers: ours, and those that the project's own
packages can run.
"""

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.peers import processes
from benchmarks.peers.client import Client
from benchmarks.peers.loads import Bench, Load, Scale
from benchmarks.peers.processes import ProcessTree, running_server
from benchmarks.serving_load import Planned
from models.manifest import read_manifest

STICKERS = Path(__file__).parents[3] / "bundles" / "stickers"
SCALE = Scale(clients=(3,), closed_s=0.5, open_s=0.5, warm_s=0.1, coding_s=0.3, repeats=1)
PICTURE = Planned(at_s=0, task="generate", steps=2, seed=12)


@pytest.fixture(autouse=True)
def own_interpreter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """FastAPI is one of the project's own packages: no other environment is needed."""
    monkeypatch.setattr(processes, "PYTHON", Path(sys.executable))
    monkeypatch.setattr(processes, "LOGS", tmp_path)


@pytest.mark.parametrize("name", ["fastapi-lock", "fastapi-pool"])
def test_a_server_runs_all_loads_of_the_comparison(name: str) -> None:
    bench = Bench(STICKERS, "null", SCALE, {f"generate {n}": 1.0 for n in (10, 25, 50)}, {}, {})
    bench.solo_s = {f"{task} {n}": 1.0 for task in ("generate", "edit") for n in (10, 25, 50)}
    found = bench.run(name, [*bench.saturating(name), *bench.arriving({"heavy": 20.0})])
    assert list(found["loads"]) == [
        "encode raw",
        "encode json",
        "decode raw",
        "decode json",
        "3 clients",
        "heavy",
    ]
    for load in found["loads"].values():
        assert load["requests"] > 0
        assert load["failed"] == 0
        assert load["cpu_s_per_answer"] > 0
        assert load["memory_bytes"] > 10**7
    assert found["ready_s"] > 0
    assert bench.differences == {name: 0}


def test_our_server_and_another_draw_the_same_picture_and_leave_no_process() -> None:
    manifest = read_manifest(STICKERS)
    pictures, families = [], []
    for name in (processes.OURS, "fastapi-lock"):
        with running_server(name, "null", STICKERS) as server:

            async def fetch(server: processes.Server = server) -> None:
                async with Client(server, manifest) as client:
                    await client.wait_until_ready()
                    pictures.append(await client.picture(PICTURE))
                    for task in ("edit", "encode", "decode"):
                        for raw in (False, True):
                            plan = [Planned(at_s=0, task=task, steps=1, seed=3)]  # type: ignore[arg-type]
                            load = Load(
                                name=task,
                                plan=plan,
                                seconds=0.5,
                                warm_s=0.1,
                                grace_s=5,
                                raw=raw,
                            )
                            assert (await load.run(server, manifest, None))["failed"] == 0

            asyncio.run(fetch())
            families += server.tree.processes()
    assert np.array_equal(*pictures)
    assert len(families) >= 4
    assert not any(process.is_running() for process in families)


def test_what_is_not_answered_in_time_is_given_up_and_counted() -> None:
    manifest = read_manifest(STICKERS)
    plan = [Planned(at_s=0.0, task="generate", steps=50, seed=seed) for seed in range(4)]
    load = Load(name="slow", plan=plan, seconds=0.2, warm_s=0.1, grace_s=0.3)
    with running_server("fastapi-lock", "emulated", STICKERS) as server:

        async def run() -> dict[str, float]:
            async with Client(server, manifest) as client:
                await client.wait_until_ready()
            return await load.run(server, manifest, None)

        found = asyncio.run(run())
    assert (found["given_up"], found["per_s"]) == (4, 0)
    assert 0.5 <= found["p50_s"] < 2


def test_without_the_other_servers_the_error_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "PYTHON", tmp_path / "python")
    with (
        pytest.raises(FileNotFoundError, match="make peers"),
        running_server("litserve", "null", STICKERS),
    ):
        pass


def test_a_tree_counts_all_processes_that_a_root_started() -> None:
    tree = ProcessTree([1])
    assert len(tree.processes()) > 1
    assert ProcessTree([2**22 + 1]).processes() == []
