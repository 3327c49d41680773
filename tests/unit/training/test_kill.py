"""A run that is killed at any moment goes on to the weights of one that never was."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.training.test_processes import ROOT, TRAIN, environment, finish, weights

STEPS = 60
DEADLINE_S = 60


def steps_saved(run: Path) -> int:
    """Steps of the run's checkpoint; 0 while there is none, or it is being replaced."""
    try:
        state = json.loads((run / "checkpoint" / "state.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return int(state["step"])


def kill_at(arguments: list[str], run: Path, step: int, delay_s: float) -> None:
    """Start the command and end it with SIGKILL, a moment after that step was saved."""
    with subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        deadline = time.monotonic() + DEADLINE_S
        while steps_saved(run) < step and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(delay_s)
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors.decode()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_three_kills_do_not_change_the_weights(tiny_runs: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for root in (whole, killed):
        shutil.copytree(tiny_runs / "tiny-bridge", root / "tiny-bridge")
    # The tiny stages save after every step, so that a kill often meets a save.
    train = [sys.executable, *TRAIN, "tiny-diffusion", "--set", f"steps={STEPS}", "--root"]
    finish(*train, str(whole))

    run = killed / "tiny-diffusion"
    moments = []
    for third in range(3):
        step = random.SystemRandom().randrange(third * STEPS // 3, (third + 1) * STEPS // 3 - 5)
        delay_s = random.SystemRandom().uniform(0, 0.05)
        moments.append((step, delay_s))
        kill_at([*train, str(killed)], run, step, delay_s)
        assert steps_saved(run) < STEPS
    assert "steps done" in finish(*train, str(killed))

    expected, found = weights(whole / "tiny-diffusion"), weights(run)
    assert found.keys() == expected.keys()
    different = [name for name, value in expected.items() if not found[name].equal(value)]
    assert different == [], f"killed at {moments}"
    curves = [json.loads(line) for line in (run / "curves.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curves] == [50, STEPS]
    assert not os.path.exists(run / "checkpoint.partial")
