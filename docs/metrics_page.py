"""docs/metrics.md: every metric of the service, from the module that declares them."""

import inspect

from prometheus_client.metrics import MetricWrapperBase

from docs.markdown import code, table
from service import metrics
from service.api.outcomes import outcome_of

_INTRODUCTION = """\
# Metrics

Written by `python -m docs.generate` from `service/metrics.py`: do not edit. Where they are scraped,
and which of them must not be summed up, stands under
[Monitoring](../deploy/README.md#monitoring); what the alerts on them mean, in
[operations.md](operations.md#alerts).

Units are in the names: seconds, bytes, ratios from 0 to 1. No label holds an id, a key or a prompt.
A histogram `name` has `name_bucket`, `name_sum` and `name_count`.
"""
_SUFFIXES = {"counter": "_total", "info": "_info"}


def metrics_page() -> str:
    """The whole page."""
    declared = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    rows = (
        (
            code(metric._name + _SUFFIXES.get(str(metric._type), "")),
            str(metric._type),
            ", ".join(map(code, metric._labelnames)),
            metric._documentation,
        )
        for metric in declared
    )
    _, outcomes, *_ = (inspect.getdoc(outcome_of) or "").split("\n\n")
    return (
        f"{_INTRODUCTION}\n{table(('metric', 'kind', 'labels', 'what it says'), rows)}\n\n"
        f"The label `outcome` of requests: {' '.join(outcomes.split())}\n"
    )
