"""The README's own examples, run as they stand against a server that was started as it says."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from benchmarks.serving import own_server
from export.tensorrt_export import trtexec_lines
from tests.documents import ADDRESS, README, ROOT, code_block, run
from training.presets import PRESETS

SIZE = (128, 128)

pytestmark = pytest.mark.timeout(180)  # commands that each start anew


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with own_server() as url:
        yield url


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        assert image.size == SIZE
        return image.convert("RGB").tobytes()


def test_curl_and_the_openai_client_get_the_same_picture(
    server: str, require_tool: Callable[[str], str], tmp_path: Path
) -> None:
    require_tool("curl")
    generation = code_block(README, "sh", """"seed": 1}' -o out.png""")
    run(["bash", "-c", generation.replace(ADDRESS, server)], tmp_path)
    by_curl = pixels(tmp_path / "out.png")

    blocks = ("OpenAI(", "mask=mask_file")
    script = "".join(code_block(README, "python", text) for text in blocks).replace(ADDRESS, server)
    run([sys.executable, "-W", "error", "-c", script], tmp_path)
    assert pixels(tmp_path / "out.png") == by_curl
    assert pixels(tmp_path / "edited.png") != by_curl
    masked = pixels(tmp_path / "masked.png")
    hole = 3 * 128 * 40  # the bytes of the top 40 rows
    assert masked[hole:] == by_curl[hole:]
    assert masked[:hole] != by_curl[:hole]


@pytest.mark.timeout(180)
def test_commands_make_the_files_they_name(tmp_path: Path) -> None:
    block = code_block(README, "sh", "rpiae generate")
    offline = re.findall(
        r"^rpiae (?:generate|edit|variation|encode|decode) .*$", block, re.MULTILINE
    )
    assert len(offline) == 5
    for line in offline:
        run(["bash", "-c", line], tmp_path)
        output = re.search(r"-o (\S+)", line)
        assert output is not None
        assert (tmp_path / output[1]).stat().st_size > 0
    assert pixels(tmp_path / "out.png") != pixels(tmp_path / "edited.png")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bundle_is_exported_and_served_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copying, exporting, serving = code_block(README, "sh", "rpiae export my-stickers").splitlines()
    (tmp_path / "bundles").symlink_to(ROOT / "bundles")
    run(["bash", "-c", f"{copying} && {exporting}"], tmp_path)
    # Engines can be built of it, as far as the table of TensorRT's operators tells.
    assert len(trtexec_lines(tmp_path / serving.split()[-1], "fp32")) == 5
    setting, *_, bundle = serving.split()
    monkeypatch.setenv(*setting.split("=", 1))
    with own_server("--bundle", str(tmp_path / bundle)) as url:
        (card,) = httpx.get(f"{url}/v1/models").json()["data"]
        answer = httpx.post(
            f"{url}/v1/images/generations",
            json={"prompt": "a red circle", "seed": 1},
            headers={"accept": "image/png"},
        )
    assert card["backends"] == ["onnxruntime"]
    assert answer.status_code == 200, answer.text


def test_the_named_training_run_exists() -> None:
    (name,) = re.findall(r"rpiae train (\S+)", code_block(README, "sh", "rpiae train"))
    assert name in PRESETS
