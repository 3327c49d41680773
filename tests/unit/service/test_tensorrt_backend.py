"""The TensorRT backend on a double of the library, which runs its engines with onnxruntime."""

import shutil
from pathlib import Path

import pytest
import torch

from export.tensorrt_export import export_tensorrt
from models.engine_bucket import EngineBucket
from models.manifest import BundleError, read_manifest
from models.sessions import GraphError
from models.tensorrt_library import engine_target
from models.tensorrt_session import EngineSession
from models.text_context import TextContext
from service.backends.tensorrt_backend import TensorRTBackend
from service.backends.torch_backend import TorchBackend
from service.errors import BackendError, OutOfMemory
from tests.recorded_tensorrt import GPU, RecordedTensorRT, install

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]  # the fixtures export bundles

PROMPTS = ("a red circle", "", "a blue square on a red background")


@pytest.fixture(scope="module")
def class_bundle(exported_class_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the published layout's bundle with engines of up to 4 rows: read it only."""
    directory = tmp_path_factory.mktemp("class") / "bundle"
    shutil.copytree(exported_class_bundle, directory)
    with pytest.MonkeyPatch.context() as patch:
        install(patch)
        export_tensorrt(directory, "fp32", device="cpu", max_rows=4)
    return directory


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> RecordedTensorRT:
    return install(monkeypatch)


def load(directory: Path, max_rows: int | None = None) -> TensorRTBackend:
    manifest = read_manifest(directory)
    return TensorRTBackend.load(directory, manifest, device="cpu", max_rows=max_rows)


def session_of(backend: TensorRTBackend, name: str) -> EngineSession:
    session = backend._model.sessions[name]  # type: ignore[index]
    assert isinstance(session, EngineSession)
    return session


def test_the_five_calls_are_those_of_torch(engine_bundle: Path, tensorrt: RecordedTensorRT) -> None:
    ours, theirs = load(engine_bundle), TorchBackend.load(engine_bundle)
    assert ours.name == "tensorrt"
    close = {"rtol": 1e-4, "atol": 1e-4}
    images = torch.rand(3, 3, 32, 32)
    posterior, expected = ours.encode(images), theirs.encode(images)
    torch.testing.assert_close(posterior.mean, expected.mean, **close)
    torch.testing.assert_close(posterior.logvar, expected.logvar, **close)
    torch.testing.assert_close(ours.decode(expected.mean), theirs.decode(expected.mean), **close)
    x, t = torch.randn(3, 8, 4, 4), torch.rand(3)
    for source in (None, expected.mean):
        context, other = ours.prefill(PROMPTS, source), theirs.prefill(PROMPTS, source)
        assert isinstance(context, TextContext)
        assert isinstance(other, TextContext)
        assert torch.equal(context.mask, other.mask)
        for name in ("keys", "values", "source"):
            torch.testing.assert_close(getattr(context, name), getattr(other, name), **close)
        velocity, wanted = ours.velocity(x, t, context), theirs.velocity(x, t, other)
        torch.testing.assert_close(velocity, wanted, **close)
    assert tensorrt.named("execute")


@pytest.mark.usefixtures("tensorrt")
def test_rows_of_classes_and_of_their_guide(class_bundle: Path) -> None:
    ours, theirs = load(class_bundle), TorchBackend.load(class_bundle)
    x, t = torch.randn(4, *ours.limits.latent_shape), torch.rand(4)
    velocities = []
    for backend in (ours, theirs):
        contexts = [backend.prefill(["1", "class 2"], None, guide=guide) for guide in (False, True)]
        velocities.append(backend.velocity(x, t, type(contexts[0]).cat(contexts)))
    torch.testing.assert_close(*velocities, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("tensorrt")
def test_limits_are_those_of_the_profiles(engine_bundle: Path) -> None:
    limits = load(engine_bundle).limits
    assert (limits.max_rows, limits.max_images, limits.padded) == (4, 4, True)
    assert load(engine_bundle, max_rows=9).limits.max_rows == 9


def test_a_batch_takes_the_smallest_bucket_and_more_rows_run_in_pieces(
    engine_bundle: Path, tensorrt: RecordedTensorRT
) -> None:
    session = session_of(load(engine_bundle), "decode")
    assert session.rows == (1, 4)
    latents = torch.randn(11, 8, 4, 4)
    tensorrt.calls.clear()
    (together,) = session.run({"latents": latents}, ((11, 3, 32, 32),))
    assert tensorrt.named("execute") == [(1,), (1,), (1,)]  # 4, 4 and 3 rows
    (alone,) = session.run({"latents": latents[10:]}, ((1, 3, 32, 32),))
    assert tensorrt.named("execute")[3:] == [(0,)]
    torch.testing.assert_close(together[10:], alone, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("tensorrt")
def test_outputs_are_not_the_buffers(engine_bundle: Path) -> None:
    """Or the next call would change what the last one gave."""
    session = session_of(load(engine_bundle), "decode")
    first = session.run({"latents": torch.randn(1, 8, 4, 4)}, ((1, 3, 32, 32),))[0]
    kept = first.clone()
    session.run({"latents": torch.randn(1, 8, 4, 4)}, ((1, 3, 32, 32),))
    assert torch.equal(first, kept)


def test_contexts_and_buffers_are_made_once(
    engine_bundle: Path, tensorrt: RecordedTensorRT
) -> None:
    backend = load(engine_bundle)
    assert tensorrt.named("profile") == []  # nothing is allocated before it is used
    backend.warm_up((1,))
    made = tensorrt.named("profile")
    addresses = {
        name: buffer.data_ptr()
        for name, buffer in session_of(backend, "velocity")._buckets[1]._buffers.items()
    }
    backend.warm_up((1,))
    assert tensorrt.named("profile") == made
    again = session_of(backend, "velocity")._buckets[1]._buffers
    assert {name: buffer.data_ptr() for name, buffer in again.items()} == addresses


@pytest.mark.usefixtures("tensorrt")
def test_a_shorter_prompt_after_a_longer_one(engine_bundle: Path) -> None:
    """What the longer one left in the buffer must not be read."""
    backend = load(engine_bundle)
    before = backend.prefill(["a red circle"], None)
    backend.prefill(["a blue square on a red background"], None)
    after = backend.prefill(["a red circle"], None)
    assert isinstance(before, TextContext)
    assert isinstance(after, TextContext)
    assert torch.equal(before.keys, after.keys)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (
            {"latents": torch.zeros(1, 8, 4, 5)},
            r"latents has shape \(1, 8, 4, 5\), .* up to \(1, 8",
        ),
        ({"latents": torch.zeros(1, 8, 4)}, r"latents has shape \(1, 8, 4\)"),
        ({"images": torch.zeros(1, 8, 4, 4)}, r"inputs \['images'\], the engine has \['latents'\]"),
    ],
)
@pytest.mark.usefixtures("tensorrt")
def test_inputs_that_do_not_fit(
    engine_bundle: Path,
    inputs: dict[str, torch.Tensor],
    message: str,
) -> None:
    session = session_of(load(engine_bundle), "decode")
    with pytest.raises((GraphError, KeyError), match=message):
        session.run(inputs, ((1, 3, 32, 32),))


def test_errors_of_a_run_become_ours(
    engine_bundle: Path, tensorrt: RecordedTensorRT, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = load(engine_bundle)
    tensorrt.refused = "run"
    with pytest.raises(BackendError, match="the model failed: TensorRT refused a run"):
        backend.decode(torch.zeros(1, 8, 4, 4))

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(EngineBucket, "run", full)
    with pytest.raises(OutOfMemory, match="CUDA out of memory"):
        backend.decode(torch.zeros(1, 8, 4, 4))


@pytest.mark.usefixtures("tensorrt")
def test_it_measures_apart_what_prepares_a_size(engine_bundle: Path) -> None:
    backend = load(engine_bundle)
    for call in ("encode", "decode", "prefill", "velocity"):
        cost = backend.measure(call, 2)
        assert cost.seconds > 0
        assert cost.preparing_s > 0
    assert backend.memory_bytes() > 0
    assert backend.free_bytes() is None


def test_a_plan_that_the_library_does_not_load(
    engine_bundle: Path, tensorrt: RecordedTensorRT
) -> None:
    tensorrt.refused = "deserialize"
    with pytest.raises(
        BundleError, match=r"TensorRT 10\.15\.1\.29 cannot load .*encode\.fp32\.plan"
    ):
        load(engine_bundle)


def test_engines_of_another_version_are_refused_with_the_remedy(
    engine_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, GPU.model_copy(update={"gpu": "NVIDIA L4", "compute_capability": "8.9"}))
    with pytest.raises(
        BundleError,
        match=r"this is NVIDIA L4 \(8\.9\).*`rpiae export .* --tensorrt --precision fp32`",
    ):
        load(engine_bundle)


def test_without_the_library(engine_bundle: Path) -> None:
    with pytest.raises(BundleError, match="TensorRT is not installed: `pip install"):
        load(engine_bundle)


def test_without_a_gpu(engine_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr("service.backends.tensorrt_backend.engine_target", engine_target)
    with pytest.raises(BundleError, match="TensorRT runs on NVIDIA GPUs alone"):
        load(engine_bundle)
