"""The expressions of deploy/grafana and deploy/prometheus, read from the files themselves."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
RULE_FILES = [PROMETHEUS / "rules.yml", PROMETHEUS / "alerts.yml"]
_COMPARISON = re.compile(r"\s*[<>]=?\s*[0-9][0-9.e]*")


def read_dashboard(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def expressions_of(dashboard: dict[str, Any], **variables: str) -> Iterator[tuple[str, str]]:
    """Each panel's title and expression, with its variables replaced; none must be left."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            expression = str(target["expr"])
            for name, value in variables.items():
                expression = expression.replace(f"${name}", value)
            yield f"{dashboard['title']}, {panel['title']}", expression


def rules() -> Iterator[tuple[str, str]]:
    """Name and expression of each recording rule."""
    for rule in _rules():
        if "record" in rule:
            yield rule["record"], rule["expr"]


def alerts() -> Iterator[tuple[str, str]]:
    """Name and expression of each alert."""
    for rule in _rules():
        if "alert" in rule:
            yield rule["alert"], rule["expr"]


def without_threshold(expression: str) -> str:
    """What an alert looks at, whether or not it is worth an alert now."""
    observed, num_thresholds = _COMPARISON.subn("", expression)
    assert num_thresholds, f"an alert without a threshold: {expression}"
    return observed


def _rules() -> Iterator[dict[str, Any]]:
    for path in RULE_FILES:
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]
