"""Every code block of docs/, run as it stands: one program for each page and language."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.serving import own_server
from benchmarks.trace_receiver import trace_receiver
from export import onnx_export
from export.dims import PublishedDims
from export.graphs import Graph
from export.onnx_files import graph_paths
from service.cli import app
from tests.documents import ADDRESS, DOCS, ROOT, code_blocks, environment, run
from tests.published_files import write_published_files
from training import bridge, decoder, pivot, pretrain

pytestmark = pytest.mark.timeout(240)  # a page starts a service, or several commands

API = DOCS / "api.md"
PORTS = ("6379", "8000", "8001", "9100", "9101")
# What a page starts in the background ends with it.
BEGIN = """set -euo pipefail
trap 'kill $(jobs -p) 2> /dev/null || true; wait' EXIT
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """One service with the real model, for all pages that need no other."""
    with own_server() as url:
        yield url


def program(page: Path, language: str, server: str = ADDRESS) -> str:
    """The page's blocks in a language, with the test's server in the place of the reader's."""
    return "\n".join(code_blocks(page, language)).replace(ADDRESS, server)


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        assert image.size == (128, 128)
        return image.convert("RGB").tobytes()


@pytest.fixture(scope="module")
def python_folder(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the Python examples of the API's page have run."""
    folder = tmp_path_factory.mktemp("api")
    run([sys.executable, "-W", "error", "-c", program(API, "python", server)], folder)
    return folder


def check_pictures(folder: Path, python_folder: Path, *names: str) -> None:
    """Every language makes the same pictures of the same seeds."""
    for name in names:
        assert pixels(folder / name) == pixels(python_folder / name), name


def test_the_api_in_python(python_folder: Path) -> None:
    made = pixels(python_folder / "out.png")
    for same in ("streamed.png", "later.png", "made.png"):
        assert pixels(python_folder / same) == made
    edited = pixels(python_folder / "edited.png")
    hole = 3 * 128 * 40  # the bytes of the top 40 rows
    assert edited[hole:] == made[hole:]
    assert edited[:hole] != made[:hole]
    for other in ("variation.png", "linked.png", "decoded.png"):
        assert pixels(python_folder / other) != made


def test_the_api_by_curl(
    server: str, python_folder: Path, require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    require_tool("curl")
    (tmp_path / "mask.png").write_bytes((python_folder / "mask.png").read_bytes())
    output = run(["bash", "-euo", "pipefail", "-c", program(API, "sh", server)], tmp_path)
    check_pictures(tmp_path, python_folder, "out.png", "edited.png", "variation.png", "later.png")
    assert "event: succeeded" in output
    assert output.count('"status":"succeeded"') == 4  # two states, and the progress in each
    assert output.rstrip().endswith("422")
    assert pixels(tmp_path / "order-1.png") == pixels(tmp_path / "order-2.png")
    stream = (tmp_path / "stream.txt").read_text()
    assert stream.count("event: image_generation.completed") == 1
    with Image.open(tmp_path / "wide.jpg") as wide:
        assert wide.size == (256, 128)


def test_the_api_in_javascript(
    server: str, python_folder: Path, require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    node = require_tool("node")
    (tmp_path / "mask.png").write_bytes((python_folder / "mask.png").read_bytes())
    (tmp_path / "page.mjs").write_text(program(API, "javascript", server))
    output = run([node, "page.mjs"], tmp_path)
    names = ("out.png", "edited.png", "variation.png", "streamed.png", "later.png")
    check_pictures(tmp_path, python_folder, *names)
    assert "422 invalid_value: steps" in output
    assert "succeeded" in output


def with_free_ports(text: str) -> str:
    """The text with free ports in the place of those that the pages name."""
    with ExitStack() as stack:
        for port in PORTS:
            probe = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            text = re.sub(rf"\b{port}\b", str(probe.getsockname()[1]), text)
    return text


def run_shell(script: str, folder: Path, **settings: str) -> str:
    """What a page's shell blocks write, as one program that takes its processes along."""
    with subprocess.Popen(
        ["bash", "-c", BEGIN + script],
        cwd=folder,
        env=environment({f"RPIAE_{name.upper()}": value for name, value in settings.items()}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, log = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    assert process.returncode == 0, output + log
    return output


def run_page(name: str, folder: Path, **settings: str) -> str:
    """The shell blocks of a page of docs/ that starts what it needs."""
    return run_shell(with_free_ports(program(DOCS / name, "sh")), folder, **settings)


def run_here(command: str, *more: str) -> None:
    """An `rpiae` command in this process, which has imported already what it needs."""
    _, *arguments = shlex.split(command)
    finished = CliRunner().invoke(app, [*arguments, *more])
    assert finished.exit_code == 0, finished.output


def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    run_page("configuration.md", tmp_path)


def test_operations(require_tool: Callable[[str], str], tmp_path: Path) -> None:
    require_tool("curl")
    output = run_page("operations.md", tmp_path, backend="fake", fake_step_s="0.2")
    assert output.count('{"status":"ready","model":"stickers"') == 2  # at each gateway
    listed, after = re.split(r"running, its worker was told to stop\n", output)
    assert "batch" in listed
    assert after.split() == ["no", "dead", "letters"] * 2


def test_keys(require_tool: Callable[[str], str], tmp_path: Path) -> None:
    require_tool("curl")
    output = run_page("security.md", tmp_path, backend="fake")
    assert '"invalid_api_key"' in output
    assert output.rstrip().endswith("401")
    assert (tmp_path / "hashed-keys").read_text().startswith("sha256:")
    assert "stickers" in (tmp_path / "models.json").read_text()


def test_tracing(require_tool: Callable[[str], str], tmp_path: Path) -> None:
    require_tool("curl")
    page = program(DOCS / "tracing.md", "sh")
    (trace_id,) = re.findall(r"traceparent: 00-(\w+)-", page)
    with trace_receiver() as receiver:
        collected = page.replace("http://127.0.0.1:4318", receiver.url)
        run_shell(with_free_ports(collected), tmp_path, backend="fake")
        names = {span.name for span in receiver.spans(trace_id)}
    assert {"read", "answer", "queue", "publish"} <= names
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.format == "PNG"


def test_bundles(tmp_path: Path) -> None:
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "stickers").symlink_to(ROOT / "bundles" / "stickers")
    script = program(DOCS / "bundles.md", "python")
    output = run([sys.executable, "-W", "error", "-c", script], tmp_path)
    assert output.startswith("stickers ")
    assert (tmp_path / "my-tokenizer" / "manifest.json").is_file()


def test_published_files(
    require_tool: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands as they stand, but for the sizes of the files."""
    require_tool("curl")
    dims = ROOT / "tests" / "data" / "parity" / "config.json"
    write_published_files(tmp_path / "path" / "to" / "RPiAE", PublishedDims.read(dims))
    (tmp_path / "bundles").mkdir()
    script = with_free_ports(program(DOCS / "bundles.md", "sh"))
    importing, rest = script.split("\n", 1)
    monkeypatch.chdir(tmp_path)
    run_here(importing, "--dims", str(dims))
    run_shell(rest, tmp_path)
    with Image.open(tmp_path / "class.png") as picture:
        assert picture.format == "PNG"


@pytest.fixture
def traced(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs of the tiny bundle as other tests traced them, which takes most of an export."""

    def copy_graph(graph: Graph, path: Path) -> None:
        for part in graph_paths(exported_bundle / "onnx" / "fp32" / path.name):
            shutil.copy(part, path.with_name(part.name))

    monkeypatch.setattr(onnx_export, "write_graph", copy_graph)


@pytest.mark.usefixtures("traced")
def test_export(
    require_tool: Callable[[str], str],
    tiny_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The commands as they stand, on a small bundle; exports run in this process."""
    require_tool("curl")
    shutil.copytree(tiny_bundle, tmp_path / "bundles" / "stickers")
    script = with_free_ports(program(DOCS / "export.md", "sh"))
    monkeypatch.chdir(tmp_path)
    for part in re.split(r"^(rpiae export .*)\n", script, flags=re.MULTILINE):
        if part.startswith("rpiae export"):
            run_here(part)
        else:
            run_shell(part, tmp_path)
    assert '"backends":["onnxruntime"]' in (tmp_path / "models.json").read_text()
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.size == (32, 32)
    output = run([sys.executable, "-c", program(DOCS / "export.md", "python")], tmp_path)
    assert re.findall(r"^(\w+) passed", output, re.MULTILINE) == ["fp32", "int8"]


def write_photos(folder: Path) -> None:
    """Two classes of a few pictures."""
    for index, kind in enumerate(("cat", "dog")):
        (folder / kind).mkdir(parents=True)
        for number in range(4):
            picture = Image.new("RGB", (150, 140), (60 * number, 200 * index, 90))
            picture.save(folder / kind / f"{number}.png")


def short_options(command: str) -> list[str]:
    """What makes a run of `rpiae train` end at once."""
    if "stickers-bundle" in command:
        return []
    fields = ["steps=1", "batch_size=2"]
    if "stickers-pretrain" not in command:
        fields.append("data.num_workers=0")
    if "small-class" in command:
        fields.append("statistics_images=8")
    return [part for field in fields for part in ("--set", field)]


@pytest.fixture
def short_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialisations look at few images."""
    for stage in (pretrain, pivot, bridge, decoder):
        monkeypatch.setattr(stage, "INIT_IMAGES", 16)


@pytest.mark.usefixtures("short_training")
def test_training(
    require_tool: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands as they stand, but for the number of steps and pictures."""
    require_tool("curl")
    write_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    script = with_free_ports(program(DOCS / "training.md", "sh")).replace("\\\n", " ")
    lines = script.splitlines()
    training = [line for line in lines if line.startswith("rpiae train")]
    for line in training:
        run_here(line, *short_options(line))
    run_shell("\n".join(line for line in lines if line not in training), tmp_path)
    with Image.open(tmp_path / "cat.png") as picture:
        assert picture.size == (128, 128)
