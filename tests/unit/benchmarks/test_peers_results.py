"""The README's sections on other servers are what was measured, and empty where nothing was."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving_peers, serving_peers_tuning
from benchmarks.peers.tuning import TUNED, beyond, trials
from benchmarks.readme import README, fill
from benchmarks.serving_peers_table import markdown

SECTIONS: list[tuple[str, Path, Callable[[dict[str, Any]], str]]] = [
    *(
        (
            f"serving-peers-{device}",
            serving_peers.RESULTS / f"serving_peers_{device}.json",
            lambda found: markdown(found, f"results/serving_peers_{found['device']}.png"),
        )
        for device in ("null", "emulated", "cpu")
    ),
    ("serving-peers-tuning", serving_peers_tuning.RESULTS, serving_peers_tuning.markdown),
]


@pytest.mark.parametrize(("section", "path", "text_of"), SECTIONS, ids=[one[0] for one in SECTIONS])
def test_the_readme_shows_what_was_measured(
    section: str, path: Path, text_of: Callable[[dict[str, Any]], str]
) -> None:
    text = README.read_text(encoding="utf-8")
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    assert fill(text, section, "" if found is None else text_of(found)) == text


def test_the_settings_are_the_best_that_were_tried() -> None:
    found = json.loads(serving_peers_tuning.RESULTS.read_text(encoding="utf-8"))["trials"]
    best = {name: serving_peers_tuning.best(one) for name, one in found.items()}
    assert best == {name: TUNED[name] for name in best}
    for name, one in found.items():
        tried = [trial["settings"] for trial in one]
        assert all(settings in tried for settings in (*trials(name), *beyond(name)))
