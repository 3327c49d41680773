"""PyTorch in other precisions, and at sizes that are compiled and recorded: the same pictures.

Everything but the recording on a device itself: the double overwrites its outputs as graphs do.
"""

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.bundle import Bundle, load_bundle
from models.class_denoiser import ClassDenoiser, ClassDenoiserConfig
from models.class_labels import ClassEncoder
from models.low_precision import LowPrecision
from models.manifest import BundleError, read_manifest
from models.packed_linear import PackedLinear
from service.backends import compiling, torch_backend
from service.backends.compiling import Compiler, find_compiler
from service.backends.static_batches import Run
from service.backends.torch_backend import TorchBackend, TorchPrecision
from service.engine.calibration import calibrate
from service.engine.work import PictureWork
from service.errors import BackendError, OutOfMemory
from service.loading import load_backend, load_model
from service.settings import SettingsError, load_settings
from tests.mixed_jobs import mixed_jobs, run_jobs
from tests.recorded_calls import Recording

TOLERANCE = 1e-4
SIZES = (8, 4, 2, 1)
CPU = torch.device("cpu")


def double(recording: Recording | None = None) -> Compiler:
    """Compiles nothing."""
    return Compiler(lambda _: None, recording or Recording())


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Path) -> Bundle:
    return load_bundle(tiny_bundle)


@pytest.fixture(scope="module")
def source() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (3, 32, 32), generator=generator, dtype=torch.uint8)


def class_bundle(bundle: Bundle) -> Bundle:
    config = ClassDenoiserConfig(
        latent_channels=8, latent_side=4, width=16, depth=1, num_heads=2, num_classes=2
    )
    models = [ClassDenoiser(config).eval().requires_grad_(False) for _ in range(2)]
    for model in models:
        for parameter in model.parameters():
            parameter.data.add_(0.3 * torch.randn(parameter.shape))
    manifest = bundle.manifest.model_copy(update={"tasks": ["generate", "encode", "decode"]})
    return Bundle(manifest, bundle.autoencoder, models[0], ClassEncoder(["cat", "dog"]), models[1])


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_recorded_calls_are_those_of_the_modules(bundle: Bundle) -> None:
    recording = Recording()
    backend, plain = TorchBackend(bundle, compiler=double(recording)), TorchBackend(bundle)
    backend.warm_up(SIZES)
    assert recording.num_captured == 4 * (2 + 1 + 1)  # steps with and without sources
    recording.num_replays = 0
    latents, images = torch.randn(8, 8, 4, 4), torch.rand(8, 3, 32, 32)
    prompts = ["a red circle", "", "blue square on a red background", "blue"] * 2
    for size in (1, 2, 3, 7, 5):
        x, t = torch.randn(size, 8, 4, 4), torch.rand(size)
        for sources in (None, latents[:size]):
            context = plain.prefill(prompts[:size], sources)
            for _ in range(2):
                x = x + 1
                assert_close(backend.velocity(x, t, context), plain.velocity(x, t, context))
        mixed = type(context).cat([context, plain.prefill(["a"], None)])
        x, t = torch.randn(mixed.num_rows, 8, 4, 4), torch.rand(mixed.num_rows)
        assert_close(backend.velocity(x, t, mixed), plain.velocity(x, t, mixed))
        assert_close(backend.decode(latents[:size]), plain.decode(latents[:size]))
        found, expected = backend.encode(images[:size]), plain.encode(images[:size])
        assert_close(found.mean, expected.mean)
        assert_close(found.logvar, expected.logvar)
    assert recording.num_replays == 5 * (2 * 2 + 2 + 1 + 1)  # a mixed step is one of each kind


def test_what_was_not_prepared_runs_as_it_is(bundle: Bundle) -> None:
    recording = Recording()
    backend, plain = TorchBackend(bundle, compiler=double(recording)), TorchBackend(bundle)
    backend.warm_up((2,))
    recording.num_replays = 0
    x, t, context = torch.randn(3, 8, 4, 4), torch.rand(3), plain.prefill(["a"] * 3, None)
    assert_close(backend.velocity(x, t, context), plain.velocity(x, t, context))
    wide = torch.randn(1, 8, 4, 6)
    assert_close(backend.decode(wide), plain.decode(wide))
    pictures = torch.rand(2, 3, 32, 48)
    assert_close(backend.encode(pictures).mean, plain.encode(pictures).mean)
    assert recording.num_replays == 0
    with pytest.raises(BackendError, match="the model failed"):
        backend.velocity(torch.zeros(1, 3, 4, 4), torch.ones(1), backend.prefill([""], None))


def test_jobs_do_not_depend_on_neighbours_nor_on_sizes(bundle: Bundle, source: Tensor) -> None:
    backend = TorchBackend(bundle, compiler=double())
    backend.warm_up((16, 4, 1))
    jobs = mixed_jobs(source)
    together = run_jobs(backend, [list(jobs)])
    for job in jobs:
        latents, image = run_jobs(TorchBackend(bundle), [[job]])[job.id]
        alone, _ = run_jobs(backend, [[job]])[job.id]
        assert_close(alone, latents)
        assert_close(together[job.id][0], latents)
        assert (together[job.id][1].int() - image.int()).abs().max() <= 1


def test_autoguided_rows_are_split_between_recorded_models(bundle: Bundle) -> None:
    classes, recording = class_bundle(bundle), Recording()
    backend = TorchBackend(classes, compiler=double(recording))
    backend.warm_up((8, 2))
    assert recording.num_captured == 2 * (1 + 1 + 1 + 1)  # a guide, and no sources
    jobs = [
        PictureWork(id=str(seed), prompt="cat", seed=seed, num_steps=3, guidance_scale=2.05,
                    autoguided=bool(seed % 2))
        for seed in range(4)
    ]  # fmt: skip
    found, expected = run_jobs(backend, [jobs]), run_jobs(TorchBackend(classes), [jobs])
    for job in jobs:
        assert_close(found[job.id][0], expected[job.id][0])


def test_a_compiled_copy_shares_the_weights_and_leaves_the_model_alone(bundle: Bundle) -> None:
    changed: list[nn.Module] = []
    twin = Compiler(changed.append).compiled(bundle.denoiser)
    assert bundle.denoiser is not None
    ours = {id(parameter) for parameter in bundle.denoiser.parameters()}
    assert {id(parameter) for parameter in twin.parameters()} == ours
    originals = {id(part) for part in bundle.denoiser.modules()}
    assert len(changed) == 4  # two layers of two experts; the prompt's own has none
    assert all(id(block) not in originals for block in changed)


def test_measuring_prepares_and_calibration_finds_the_sizes(bundle: Bundle) -> None:
    recording = Recording()
    backend = TorchBackend(bundle, compiler=double(recording), max_rows=8)
    assert backend.limits.padded
    found = calibrate(backend, limit_s=0.05)
    assert found.buckets
    assert recording.num_captured > 0
    recording.num_captured = 0
    cost = backend.measure("velocity", 1)
    assert recording.num_captured == 0  # it is there already
    assert cost.seconds > 0
    fresh = TorchBackend(bundle, compiler=double(recording)).measure("decode", 3)
    assert recording.num_captured == 1
    assert fresh.preparing_s > 0


def test_a_size_that_memory_does_not_hold_is_left_out(bundle: Bundle) -> None:
    recording = Recording()

    class Small(Recording):
        def __call__(self, run: Run) -> Run:
            outputs = run()
            if len(outputs[0]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return recording(run)

    backend = TorchBackend(bundle, compiler=double(Small()))
    backend.warm_up((4, 2, 1))
    assert recording.num_captured == 2 * (2 + 1 + 1)
    with pytest.raises(OutOfMemory):
        backend.measure("velocity", 4)
    assert calibrate(backend).max_rows == 3  # what one guided edit takes, whatever fits


@pytest.mark.parametrize("optional", [True, False])
def test_what_cannot_be_compiled_runs_as_it_is_unless_it_was_asked_for(
    bundle: Bundle, caplog: pytest.LogCaptureFixture, optional: bool
) -> None:
    def fail(_run: Run) -> Run:
        raise RuntimeError("no Python.h")

    compiler = Compiler(lambda _: None, fail, optional=optional)
    backend, plain = TorchBackend(bundle, compiler=compiler), TorchBackend(bundle)
    if not optional:
        with pytest.raises(BundleError, match=r"no Python\.h; RPIAE_COMPILE=off serves uncompiled"):
            backend.warm_up((2,))
        return
    backend.warm_up((2,))
    assert caplog.text.count("compiling failed, the model runs as it is") == 1
    x, t, context = torch.randn(2, 8, 4, 4), torch.rand(2), plain.prefill(["a"] * 2, None)
    assert_close(backend.velocity(x, t, context), plain.velocity(x, t, context))
    assert_close(backend.decode(x), plain.decode(x))


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_jobs_do_not_depend_on_neighbours_in_any_precision(
    tiny_bundle: Path, source: Tensor, precision: TorchPrecision
) -> None:
    """The contract's 1/255 on 99.9 % of the values, on this device and without fixed sizes."""
    backend = TorchBackend.load(tiny_bundle, precision=precision)
    jobs = mixed_jobs(source)
    together = run_jobs(backend, [list(jobs)])
    staggered = run_jobs(backend, [[job] for job in reversed(jobs)])
    near = []
    for job in jobs:
        _, image = run_jobs(backend, [[job]])[job.id]
        for other in (together, staggered):
            near.append((other[job.id][1].int() - image.int()).abs() <= 1)
    assert torch.stack(near).float().mean() >= 0.999


@pytest.mark.parametrize("precision", ["bf16", "int8", "fp8"])
def test_a_step_depends_on_its_size_by_rounding_alone(
    tiny_bundle: Path, precision: LowPrecision
) -> None:
    """Which is more in bf16 than the contract grants over many steps: fp32 is the default."""
    lowered = load_bundle(tiny_bundle).lower(precision, torch.bfloat16)
    backend = TorchBackend(lowered, compiler=double(), precision=precision)
    backend.warm_up((16, 4, 1))
    latents, t = torch.randn(12, 8, 4, 4), torch.rand(12)
    edits, prompts = (backend.prefill(["a blue circle"] * 6, x) for x in (latents[:6], None))
    context = type(edits).cat([edits, prompts])
    together = backend.velocity(latents, t, context)
    for rows in ([0], [9], [2, 11], [8, 3, 4, 1]):
        alone = backend.velocity(latents[rows], t[rows], context.select(rows))
        error = (alone - together[rows]).norm() / together[rows].norm()
        assert error < 0.02


def test_precision_is_in_the_name_the_pictures_and_the_memory(tiny_bundle: Path) -> None:
    backends = {
        precision: TorchBackend.load(tiny_bundle, precision=precision)
        for precision in ("fp32", "bf16", "int8", "fp8")
    }
    names = [backend.name for backend in backends.values()]
    assert names == ["torch", "torch-bf16", "torch-int8", "torch-fp8"]
    latents = torch.randn(2, 8, 4, 4)
    pictures = {name: backend.decode(latents) for name, backend in backends.items()}
    full = backends["fp32"]
    for name, backend in list(backends.items())[1:]:
        assert backend.memory_bytes() < full.memory_bytes()
        difference = (pictures[name] - pictures["fp32"]).abs()
        assert 0 < difference.mean() < 0.1
        assert backend.decode(latents).dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8", "fp8"])
def test_the_settings_choose_the_precision(tiny_bundle: Path, precision: TorchPrecision) -> None:
    settings = load_settings(bundle=tiny_bundle, backend="torch", precision=precision, threads=1)
    found = load_backend(settings, tiny_bundle, read_manifest(tiny_bundle)).backend
    assert found.name == ("torch" if precision == "fp32" else f"torch-{precision}")
    with pytest.raises(SettingsError, match="torch has no RPIAE_PRECISION=fp16"):
        load_settings(backend="torch", precision="fp16")


def test_a_worker_is_ready_when_all_its_sizes_are(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = Recording()
    monkeypatch.setattr(torch_backend, "find_compiler", lambda *_: double(recording))
    settings = load_settings(bundle=tiny_bundle, backend="torch", compile="on", max_rows=6)
    model = load_model(settings, tiny_bundle)
    assert model.calibration.buckets[-1] == 6
    before = recording.num_captured
    for size in model.calibration.buckets:
        model.backend.measure("velocity", size)
    assert recording.num_captured == before


def find(mode: str, path: Path | None = None) -> Compiler | None:
    return find_compiler(mode, CPU, path)  # type: ignore[arg-type]


def test_a_cpu_compiles_when_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    assert find("auto") is None
    assert find("off") is None
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    with pytest.raises(BundleError, match=r"RPIAE_COMPILE=on lacks a C\+\+ compiler"):
        find("on")
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert find("on") is not None
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"
    assert find("on", tmp_path) is not None
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path)


@pytest.mark.parametrize("has_triton", [True, False])
def test_a_gpu_records_and_compiles_if_it_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, has_triton: bool
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(compiling, "CudaGraphs", lambda device: Recording())
    monkeypatch.setattr(compiling, "find_spec", lambda name: object() if has_triton else None)
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(compiling, "compile_block", compiled.append)
    compiler = find_compiler("auto", torch.device("cuda:0"), None)
    assert compiler is not None
    assert isinstance(compiler.capture, Recording)
    compiler.compiled(nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(1, 1)])}))
    assert len(compiled) == has_triton
    assert ("only recorded as CUDA graphs" in caplog.text) == (not has_triton)
    if not has_triton:
        with pytest.raises(BundleError, match="RPIAE_COMPILE=on lacks Triton"):
            find_compiler("on", torch.device("cuda:0"), None)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # by PyTorch of itself
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)
def test_really_compiled(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # put back after the test
    backend = TorchBackend.load(tiny_bundle, compile="on", compile_cache=tmp_path / "kernels")
    plain = TorchBackend.load(tiny_bundle)
    assert not any(isinstance(part, PackedLinear) for part in backend._bundle.denoiser.modules())
    assert backend.measure("velocity", 2).preparing_s > 0.1
    assert list((tmp_path / "kernels").rglob("*.so"))  # for the next start
    x, t = torch.randn(2, 8, 4, 4), torch.rand(2)
    for sources in (None, torch.randn(2, 8, 4, 4)):
        context = plain.prefill(["a red circle", "blue"], sources)
        together = backend.velocity(x, t, context)
        torch.testing.assert_close(together, plain.velocity(x, t, context), rtol=0, atol=1e-3)
        for row in range(2):
            alone = backend.velocity(x[row : row + 1], t[row : row + 1], context.select([row]))
            assert_close(alone, together[row : row + 1])


def test_a_gpu_without_fp8_is_told(tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: (8, 0))
    flags = (
        (torch.backends.cudnn, "allow_tf32"),
        (torch.backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    )
    with ExitStack() as stack:
        for owner, name in flags:
            stack.callback(setattr, owner, name, getattr(owner, name))
        with pytest.raises(BundleError, match="this GPU has no fp8: set RPIAE_PRECISION to int8"):
            TorchBackend.load(tiny_bundle, device="cuda:0", precision="fp8")
        assert [getattr(owner, name) for owner, name in flags] == [False, False]


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # by PyTorch of itself
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_on_a_gpu(tiny_bundle: Path, source: Tensor, precision: TorchPrecision) -> None:
    """Compiled and recorded on a device, against the CPU; and the contract in float32."""
    plain = TorchBackend.load(tiny_bundle, precision=precision)
    backend = TorchBackend.load(tiny_bundle, device="cuda:0", precision=precision, compile="auto")
    backend.warm_up((16, 4, 1))
    x, t = torch.randn(3, 8, 4, 4), torch.rand(3)
    prompts, sources = ["a red circle", "", "blue"], torch.randn(3, 8, 4, 4)
    for latents in (None, sources):
        found = backend.velocity(x, t, backend.prefill(prompts, latents)).cpu()
        expected = plain.velocity(x, t, plain.prefill(prompts, latents))
        error = (found - expected).norm() / expected.norm()
        assert error < (1e-4 if precision == "fp32" else 0.05)
    if precision == "fp32":
        jobs = mixed_jobs(source)
        together = run_jobs(backend, [list(jobs)])
        alone = [run_jobs(backend, [[job]])[job.id][1].int() for job in jobs]
        pairs = [(together[job.id][1].int(), one) for job, one in zip(jobs, alone, strict=True)]
        near = torch.stack([(a - b).abs() <= 1 for a, b in pairs])
        assert near.float().mean() >= 0.999
