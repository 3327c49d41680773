"""The onnxruntime backend gives what PyTorch gives, and is chosen only when it may be."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.manifest import BundleError, Precision, read_manifest
from models.onnx_session import GraphError, GraphSession
from models.text_context import TextContext
from service import loading
from service.backends.base import Backend, Cost
from service.backends.onnx_backend import OnnxBackend
from service.backends.torch_backend import TorchBackend
from service.engine.engine import Engine
from service.engine.work import Finished, PictureWork
from service.errors import BackendError, OutOfMemory
from service.loading import load_backend
from service.log import configure_logging
from service.settings import Settings, SettingsError, load_settings

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # the fixtures export bundles

CLOSE = 1e-4
PROMPTS = ("a red circle", "", "a blue square on a red background")


def onnx_backend(directory: Path, precision: Precision = "fp32") -> OnnxBackend:
    return OnnxBackend.load(directory, read_manifest(directory), precision=precision)


def assert_close(ours: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(ours, expected, rtol=CLOSE, atol=CLOSE)


def picture(backend: Backend, **fields: object) -> Tensor:
    engine = Engine(backend, shift=1.5)
    engine.add(PictureWork(id="p", num_steps=6, guidance_scale=2, seed=3, **fields))  # type: ignore[arg-type]
    while True:
        for event in engine.tick().events:
            if isinstance(event, Finished):
                return event.tensors["images"]


def test_the_five_calls_are_those_of_torch(exported_bundle: Path) -> None:
    ours, torch_one = onnx_backend(exported_bundle), TorchBackend.load(exported_bundle)
    assert ours.limits == torch_one.limits
    images = torch.rand(3, 3, 32, 32)
    posterior, expected = ours.encode(images), torch_one.encode(images)
    assert_close(posterior.mean, expected.mean)
    assert_close(posterior.logvar, expected.logvar)
    assert_close(ours.decode(expected.mean), torch_one.decode(expected.mean))
    x, t = torch.randn(3, 8, 4, 4), torch.rand(3)
    for source in (None, expected.mean):
        context, other = ours.prefill(PROMPTS, source), torch_one.prefill(PROMPTS, source)
        assert isinstance(context, TextContext)
        assert isinstance(other, TextContext)
        assert torch.equal(context.mask, other.mask)
        for name in ("keys", "values", "source"):
            assert_close(getattr(context, name), getattr(other, name))
        assert_close(ours.velocity(x, t, context), torch_one.velocity(x, t, other))


def test_rows_of_classes_and_of_their_guide(exported_class_bundle: Path) -> None:
    ours = onnx_backend(exported_class_bundle)
    torch_one = TorchBackend.load(exported_class_bundle)
    x, t = torch.randn(4, *ours.limits.latent_shape), torch.rand(4)
    velocities = []
    for backend in (ours, torch_one):
        contexts = [backend.prefill(["1", "class 2"], None, guide=guide) for guide in (False, True)]
        velocities.append(backend.velocity(x, t, type(contexts[0]).cat(contexts)))
    assert_close(*velocities)
    with pytest.raises(BackendError, match="TextContext is not this model's"):
        ours.velocity(x, t, TextContext(x, x, x, x))


def test_pictures_and_edits_are_those_of_torch(exported_bundle: Path) -> None:
    source = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
    backends = onnx_backend(exported_bundle), TorchBackend.load(exported_bundle)
    for fields in ({"prompt": "a red circle"}, {"prompt": "blue", "source": source}):
        ours, expected = (picture(backend, **fields).int() for backend in backends)
        assert (ours - expected).abs().max() <= 1


def test_other_sizes_run_on_torch_which_is_loaded_for_the_first(exported_bundle: Path) -> None:
    loaded: list[Backend] = []

    def load() -> Backend:
        loaded.append(TorchBackend.load(exported_bundle))
        return loaded[-1]

    backend = onnx_backend(exported_bundle)
    backend._load_other_sizes = load
    backend.decode(torch.zeros(1, 8, 4, 4))
    assert not loaded
    latents = backend.encode(torch.rand(1, 3, 32, 64)).mean
    assert latents.shape == (1, 8, 4, 8)
    assert backend.decode(latents).shape == (1, 3, 32, 64)
    assert len(loaded) == 1


def test_weights_are_needed_for_other_sizes_alone(exported_bundle: Path, tmp_path: Path) -> None:
    directory = tmp_path / "tiny"
    shutil.copytree(exported_bundle, directory)
    (directory / "autoencoder.safetensors").unlink()
    backend = onnx_backend(directory)
    assert backend.decode(torch.zeros(1, 8, 4, 4)).shape == (1, 3, 32, 32)
    with pytest.raises(BackendError, match=r"need the bundle's weights: .*autoencoder.* missing"):
        backend.decode(torch.zeros(1, 8, 4, 8))
    (directory / "vocabulary.json").write_text("[]", encoding="utf-8")
    with pytest.raises(BundleError, match=r"vocabulary\.json differs from its SHA-256"):
        onnx_backend(directory)


def test_int8_is_near_and_named(exported_bundle: Path) -> None:
    plain, int8 = (onnx_backend(exported_bundle, name) for name in ("fp32", "int8"))
    assert (plain.name, int8.name) == ("onnxruntime", "onnxruntime-int8")
    assert int8.memory_bytes() < plain.memory_bytes()
    latents = torch.randn(2, 8, 4, 4)
    images = plain.decode(latents)
    difference = (images - int8.decode(latents)).abs().max()
    assert 0 < difference < 0.1 * images.abs().max()


def test_it_measures_and_warms_up(exported_bundle: Path) -> None:
    backend = onnx_backend(exported_bundle)
    backend.warm_up((1, 4))
    for call in ("encode", "decode", "prefill", "velocity"):
        cost = backend.measure(call, 2)
        assert cost.seconds > 0
        assert cost.memory_bytes == 0
    assert backend.free_bytes() is None


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Non-zero status code returned while running Add node", BackendError),
        ("Failed to allocate memory for requested buffer of size 9", OutOfMemory),
        ("std::bad_alloc", OutOfMemory),
    ],
)
def test_errors_of_the_runtime_become_ours(
    exported_bundle: Path, monkeypatch: pytest.MonkeyPatch, message: str, kind: type[Exception]
) -> None:
    backend = onnx_backend(exported_bundle)

    def fail(*_: object) -> None:
        raise GraphError(message)

    monkeypatch.setattr(GraphSession, "run", fail)
    with pytest.raises(BackendError, match=message) as caught:
        backend.decode(torch.zeros(1, 8, 4, 4))
    assert type(caught.value) is kind


def chosen(directory: Path, **fields: object) -> str:
    settings: Settings = load_settings(bundle=directory, threads=1, **fields)
    return load_backend(settings, directory, read_manifest(directory)).backend.name


def test_what_is_chosen(
    tiny_bundle: Path, exported_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(tiny_bundle) == "torch"
    for seconds, fastest in ((1e-9, "onnxruntime"), (1e3, "torch")):
        with monkeypatch.context() as patch:
            cost = Cost(seconds)
            patch.setattr(OnnxBackend, "measure", lambda *_, cost=cost: cost)
            assert chosen(exported_bundle) == fastest
    assert chosen(exported_bundle, backend="torch") == "torch"
    assert chosen(exported_bundle, backend="onnxruntime", precision="int8") == "onnxruntime-int8"
    with pytest.raises(BundleError, match="has no fp32 export; `rpiae export"):
        chosen(tiny_bundle, backend="onnxruntime")


def test_a_damaged_export_falls_back_and_says_so(
    exported_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "tiny"
    shutil.copytree(exported_bundle, directory)
    (directory / "onnx" / "fp32" / "decode.onnx").write_bytes(b"damaged")
    configure_logging("info")
    assert chosen(directory) == "torch"
    (warning,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert warning["level"] == "warning"
    assert "onnx/fp32/decode.onnx differs from its SHA-256" in warning["reason"]
    with pytest.raises(BundleError, match=r"is damaged: onnx/fp32/decode\.onnx"):
        chosen(directory, backend="onnxruntime")


def test_without_onnxruntime(exported_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    assert chosen(exported_bundle) == "torch"
    with pytest.raises(BundleError, match=r"install rpiae\[onnxruntime\]"):
        chosen(exported_bundle, backend="onnxruntime")


def test_without_its_device(exported_bundle: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(BundleError, match="no CUDAExecutionProvider: install onnxruntime-gpu"):
        OnnxBackend.load(exported_bundle, read_manifest(exported_bundle), device="cuda:0")


def test_a_precision_that_a_runtime_lacks_is_refused() -> None:
    with pytest.raises(SettingsError, match="onnxruntime has no RPIAE_PRECISION=fp8"):
        load_settings(backend="onnxruntime", precision="fp8")
