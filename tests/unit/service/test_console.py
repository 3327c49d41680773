"""The line that a start shows: a request that the served model can answer."""

from pathlib import Path

import pytest

from models.manifest import Manifest, Task, write_manifest
from service.console import show_address
from service.settings import Settings


def bundle(folder: Path, tasks: list[Task], class_names: list[str] | None = None) -> Path:
    manifest = Manifest(
        name="model",
        tasks=tasks,
        image_size=(16, 16),
        latent_shape=(4, 2, 2),
        latents_mean=[0.0],
        latents_std=[1.0],
        timestep_shift=1.0,
        class_names=class_names,
    )
    write_manifest(folder, manifest)
    return folder


@pytest.mark.parametrize(
    ("tasks", "class_names", "shown"),
    [
        (["generate"], None, '"prompt": "a red circle in the center on a blue background"'),
        (["generate"], ["tench, Tinca tinca", "it's"], '"prompt": "tench"'),
        (["encode", "decode"], None, "/v1/latents/encode -H 'Content-Type: image/png'"),
    ],
)
def test_the_example_fits_the_model(
    tasks: list[Task],
    class_names: list[str] | None,
    shown: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_address("http://host", Settings(bundle=bundle(tmp_path, tasks, class_names)))
    output = capsys.readouterr().out
    assert output.splitlines()[0] == f"rpiae serves {tmp_path.name} on http://host"
    assert shown in output
    assert "Authorization" not in output
