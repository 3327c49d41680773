"""The README's own examples, run as they stand against a server that was started as it says."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.serving import own_server
from export.dims import PublishedDims
from tests.published_files import write_published_files
from training.presets import PRESETS

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "http://127.0.0.1:8000"
SIZE = (128, 128)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with own_server() as url:
        yield url


def code_block(language: str, containing: str) -> str:
    """The one code block of the README in that language with that text in it."""
    blocks = re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if containing in block]
    return block


def run(arguments: list[str], folder: Path) -> str:
    """What a program writes, run in `folder` with this environment's commands first on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    finished = subprocess.run(
        arguments,
        cwd=folder,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        assert image.size == SIZE
        return image.convert("RGB").tobytes()


def test_curl_and_the_openai_client_get_the_same_picture(
    server: str, require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    require_tool("curl")
    generation = code_block("sh", """"seed": 1}' -o out.png""")
    run(["bash", "-c", generation.replace(ADDRESS, server)], tmp_path)
    by_curl = pixels(tmp_path / "out.png")

    blocks = ("OpenAI(", "mask=mask_file", "partial_images=")
    script = "".join(code_block("python", text) for text in blocks).replace(ADDRESS, server)
    run([sys.executable, "-W", "error", "-c", script], tmp_path)
    assert pixels(tmp_path / "out.png") == by_curl
    assert pixels(tmp_path / "streamed.png") == by_curl
    assert pixels(tmp_path / "edited.png") != by_curl
    masked = pixels(tmp_path / "masked.png")
    hole = 3 * 128 * 40  # the bytes of the top 40 rows
    assert masked[hole:] == by_curl[hole:]
    assert masked[:hole] != by_curl[:hole]

    variation = code_block("sh", "/v1/images/variations").replace(ADDRESS, server)
    run(["bash", "-c", variation], tmp_path)
    assert pixels(tmp_path / "variation.png") != by_curl


def test_jobs_by_curl(server: str, require_tool: Callable[[str], str], tmp_path: Path) -> None:
    require_tool("curl")
    block = code_block("sh", "Prefer: respond-async").replace(ADDRESS, server)
    output = run(["bash", "-c", block], tmp_path)
    assert pixels(tmp_path / "later.png")
    assert "event: queued" in output
    assert "event: succeeded" in output
    assert output.count('"status":"succeeded"') == 4  # two states, and the progress in each


def test_commands_make_the_files_they_name(tmp_path: Path) -> None:
    block = code_block("sh", "rpiae generate")
    offline = re.findall(r"^rpiae (?:generate|edit|encode|decode) .*$", block, re.MULTILINE)
    assert len(offline) == 4
    for line in offline:
        run(["bash", "-c", line], tmp_path)
        output = re.search(r"-o (\S+)", line)
        assert output is not None
        assert (tmp_path / output[1]).stat().st_size > 0
    assert pixels(tmp_path / "out.png") != pixels(tmp_path / "edited.png")


def test_the_tokenizer_from_python(tmp_path: Path) -> None:
    script = code_block("python", "RPiAE.from_pretrained")
    (tmp_path / "bundles").symlink_to(README.parent / "bundles")
    run([sys.executable, "-W", "error", "-c", script], tmp_path)
    assert (tmp_path / "my-tokenizer" / "manifest.json").is_file()


def test_published_files_are_imported_and_served_as_it_says(tmp_path: Path) -> None:
    """The commands as they stand, on small files of the published layout."""
    dims = README.parent / "tests" / "data" / "parity" / "config.json"
    write_published_files(tmp_path / "path" / "to" / "RPiAE", PublishedDims.read(dims))
    importing, serving = code_block("sh", "--bundle bundles/rpiae-imagenet").splitlines()
    (tmp_path / "bundles").mkdir()
    run(["bash", "-c", f"{importing} --dims {dims}"], tmp_path)
    bundle = tmp_path / serving.split()[-1]
    with own_server("--bundle", str(bundle)) as url:
        answer = httpx.post(
            f"{url}/v1/images/generations",
            json={"prompt": "class 3", "steps": 4},
            headers={"accept": "image/png"},
        )
    assert answer.status_code == 200, answer.text


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bundle_is_exported_and_served_as_it_says(tmp_path: Path) -> None:
    copying, exporting, serving = code_block("sh", "rpiae export my-stickers").splitlines()
    (tmp_path / "bundles").symlink_to(README.parent / "bundles")
    run(["bash", "-c", f"{copying} && {exporting}"], tmp_path)
    with own_server("--bundle", str(tmp_path / serving.split()[-1])) as url:
        (card,) = httpx.get(f"{url}/v1/models").json()["data"]
        answer = httpx.post(
            f"{url}/v1/images/generations",
            json={"prompt": "a red circle", "seed": 1},
            headers={"accept": "image/png"},
        )
    assert card["backends"] == ["onnxruntime"]
    assert answer.status_code == 200, answer.text


def test_the_named_training_run_exists() -> None:
    (name,) = re.findall(r"rpiae train (\S+)", code_block("sh", "rpiae train"))
    assert name in PRESETS
