"""Dashboards, rules and alerts against what the service exports, without any of them running.

tests/integration/test_prometheus.py evaluates every expression on a server under load.
"""

import itertools
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Info
from prometheus_client.metrics import MetricWrapperBase

from service import metrics
from tests.monitoring_files import (
    DASHBOARDS,
    PROMETHEUS,
    ROOT,
    alerts,
    expressions_of,
    read_dashboard,
    rules,
    without_threshold,
)

VARIABLES = {"__rate_interval": "1m", "model": ".*", "task": ".*", "worker": ".*"}
DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
NUM_COLUMNS = 24
# Of Prometheus itself, and of the Python client's collector for the process.
FOREIGN_METRICS = {
    "up",
    "process_cpu_seconds_total",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
}
_METRIC = re.compile(r"\b(?:rpiae|process)_\w+\b(?!:)|\bup\b|\brpiae:\w+:\w+")
_SUFFIXES = {
    "counter": ("_total",),
    "gauge": ("",),
    "histogram": ("_bucket", "_sum", "_count"),
    "info": ("_info",),
}

each_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def exported_names() -> set[str]:
    """Names of samples that the service's metrics have in an exposition."""
    declared = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    names = {metric._name + suffix for metric in declared for suffix in _SUFFIXES[metric._type]}
    assert any(isinstance(metric, Info) for metric in declared)
    return names


def all_expressions() -> Iterator[tuple[str, str]]:
    for path in DASHBOARDS:
        yield from expressions_of(read_dashboard(path), **VARIABLES)
    yield from rules()
    for name, expression in alerts():
        yield name, expression
        yield f"{name} without its threshold", without_threshold(expression)


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def test_there_are_three_dashboards() -> None:
    boards = [read_dashboard(path) for path in DASHBOARDS]
    assert [board["uid"] for board in boards] == ["rpiae-engine", "rpiae-service", "rpiae-workers"]
    names = [{v["name"] for v in board["templating"]["list"]} for board in boards]
    assert set.union(*names) == {"datasource", "model", "task", "worker"}


@each_dashboard
def test_panels_have_their_own_ids_and_places(path: Path) -> None:
    panels: list[dict[str, Any]] = read_dashboard(path)["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        place = panel["gridPos"]
        assert 0 <= place["x"] < place["x"] + place["w"] <= NUM_COLUMNS, panel["title"]
    for one, other in itertools.combinations(panels, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


@each_dashboard
def test_everything_asks_the_chosen_data_source(path: Path) -> None:
    board = read_dashboard(path)
    assert board["schemaVersion"] >= 39
    source, *others = board["templating"]["list"]
    assert (source["name"], source["type"]) == ("datasource", "datasource")
    assert [variable["datasource"] for variable in others] == [DATA_SOURCE] * len(others)
    for panel in board["panels"]:
        if panel["type"] == "row":
            continue
        assert panel["datasource"] == DATA_SOURCE, panel["title"]
        assert panel["targets"], panel["title"]
        assert {target["refId"] for target in panel["targets"]} == set(
            "ABCDEFGH"[: len(panel["targets"])]
        )
        assert all(target["datasource"] == DATA_SOURCE for target in panel["targets"])


@each_dashboard
def test_variables_are_declared_and_used(path: Path) -> None:
    board = read_dashboard(path)
    declared = {variable["name"] for variable in board["templating"]["list"]}
    expressions = "\n".join(text for _, text in expressions_of(board))
    used = set(re.findall(r"\$\{?(\w+)", expressions)) | {"datasource"}
    assert used - {"__rate_interval"} == declared


def test_the_default_data_source_is_provisioned() -> None:
    provisioning = ROOT / "deploy" / "grafana" / "provisioning"
    sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())
    scraping = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    (source,) = sources["datasources"]
    assert source["jsonData"]["timeInterval"] == scraping["global"]["scrape_interval"]
    for path in DASHBOARDS:
        variable = read_dashboard(path)["templating"]["list"][0]
        assert variable["current"]["value"] == source["uid"]
        assert variable["query"] == source["type"]


def test_every_metric_exists() -> None:
    known = exported_names() | FOREIGN_METRICS | {name for name, _ in rules()}
    for title, expression in all_expressions():
        unquoted = re.sub(r'"[^"]*"', "", expression)
        named = set(_METRIC.findall(unquoted))
        assert named, title
        assert named <= known, f"{title}: {named - known}"


def test_every_metric_is_shown_somewhere() -> None:
    text = "\n".join(path.read_text(encoding="utf-8") for path in DASHBOARDS)
    hidden = {
        metric._name
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase) and metric._name not in text
    }
    assert hidden == set()


def test_every_variable_in_a_query_asks_for_a_label_that_exists() -> None:
    labels = {
        metric._name: metric._labelnames
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
    }
    for path in DASHBOARDS:
        for variable in read_dashboard(path)["templating"]["list"][1:]:
            name, label = re.fullmatch(
                r"label_values\((\w+), (\w+)\)", variable["definition"]
            ).groups()  # type: ignore[union-attr]
            assert name in exported_names()
            family = name.removesuffix("_total").removesuffix("_info")
            assert label in (labels[family] or ("name",))
            assert variable["query"]["query"] == variable["definition"]


def test_promtool_parses_every_expression(
    require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    records = [
        {"record": f"panel_{index}", "expr": expression, "labels": {"panel": title}}
        for index, (title, expression) in enumerate(all_expressions())
    ]
    file = tmp_path / "expressions.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    finished = promtool(require_tool, "check", "rules", str(file))
    assert finished.returncode == 0, finished.stderr + finished.stdout
    assert f"{len(records)} rules found" in finished.stdout


def test_panels_of_gpus_show_what_workers_with_a_gpu_export(
    require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    """Stands in for tests/integration/test_prometheus.py, which has no GPU."""
    where = 'job="rpiae-worker", instance="w:9100"'
    series = {
        f'rpiae_model_info{{name="m", {where}}}': "1x10",
        f'rpiae_gpu_utilization_ratio{{worker="a", {where}}}': "0.5x10",
        f'rpiae_gpu_memory_bytes{{worker="a", {where}}}': "3x10",
        f'rpiae_gpu_memory_limit_bytes{{worker="a", {where}}}': "8x10",
        f'rpiae_gpu_energy_joules_total{{worker="a", {where}}}': "0+18000x10",
    }
    panels = [
        expression
        for path in DASHBOARDS
        for _, expression in expressions_of(read_dashboard(path), **VARIABLES)
        if "rpiae_gpu_" in expression
    ]
    shown = dict(zip(panels, (0.5, 3, 8, 300), strict=True))  # 18 kJ a minute are 300 W
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": text} for name, text in series.items()],
        "promql_expr_test": [
            {
                "expr": expression.replace("[1m]", "[2m]"),
                "eval_time": "8m",
                "exp_samples": [{"labels": '{worker="a"}', "value": value}],
            }
            for expression, value in shown.items()
        ],
    }
    file = tmp_path / "gpu.yml"
    file.write_text(yaml.safe_dump({"tests": [case]}))
    finished = promtool(require_tool, "test", "rules", str(file))
    assert finished.returncode == 0, finished.stderr + finished.stdout


def test_promtool_refuses_a_broken_expression(
    require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    file = tmp_path / "broken.yml"
    rule = {"record": "broken", "expr": "sum(rate(rpiae_requests_total[1m])"}
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": [rule]}]}))
    assert promtool(require_tool, "check", "rules", str(file)).returncode != 0


def test_every_alert_has_a_case() -> None:
    cases = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    expected = {
        test["alertname"]
        for case in cases
        for test in case.get("alert_rule_test", ())
        if test["exp_alerts"]
    }
    assert expected == {name for name, _ in alerts()}


def promtool(
    require_tool: Callable[[str], str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [require_tool("promtool"), *arguments], capture_output=True, text=True, check=False
    )
