"""Settings of the model's runtime; part of `service.settings.Settings`."""

from pathlib import Path
from typing import Literal, Self, TypeAlias

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models.manifest import Precision

ServedPrecision: TypeAlias = Precision | Literal["fp8"]
Compile: TypeAlias = Literal["auto", "off", "on"]


class BackendSettings(BaseSettings):
    """Which runtime computes, how precisely, on how much of the machine."""

    model_config = SettingsConfigDict(use_attribute_docstrings=True)

    max_rows: int | None = Field(default=None, ge=3)
    """Model rows that step together at most; a guided edit has 3. Unset: measured at start."""

    prefill_cache_mb: int = Field(default=64, ge=0)
    """Mebibytes of each worker for prompts and sources that come again, each kept for its key
    alone; 0: none."""

    threads: int | None = Field(default=None, ge=1)
    """CPU threads of each worker. Unset: the CPUs that its container or machine gives it, over the
    workers."""

    backend: Literal["auto", "torch", "onnxruntime", "tensorrt", "fake"] = "auto"
    """Runtime of the model. `auto`: of torch, and those that the bundle has an export or engines
    for, the fastest on this machine, which is measured at start. `fake` computes nothing real, for
    tests of the service."""

    precision: ServedPrecision = "fp32"
    """Of the model's numbers. Less than fp32 is faster or smaller and draws other pictures. torch:
    bf16, or weights alone in int8 or fp8; exports: what `rpiae export --precision` made."""

    onnx_provider: Literal["auto", "tensorrt"] = "auto"
    """Of onnxruntime. `auto`: CUDA's on a GPU, else the CPU's; `tensorrt`: TensorRT's, which builds
    engines at start, for minutes unless compile_cache keeps them; it needs TensorRT 10."""

    compile: Compile = "auto"
    """Whether torch compiles the model and records its steps at start, which takes minutes once:
    `auto`: on a GPU alone."""

    compile_cache: Path | None = None
    """Folder in which compiled kernels, and engines of onnx_provider, stay for the next start; it
    needs to be this user's own. Unset: kernels are among the temporary files, engines not kept."""

    fake_step_s: float = Field(default=0, ge=0, le=60)
    """How long the fake runtime pretends that a denoising step takes."""

    fake_fatal_prompt: str | None = None
    """A prompt that holds this text ends the fake runtime's process, for tests of that."""

    @model_validator(mode="after")
    def _check_precision(self) -> Self:
        refused: dict[str, tuple[ServedPrecision, ...]] = {
            "torch": ("fp16",),
            "onnxruntime": ("fp8",),
            "tensorrt": ("fp8",),
        }
        if self.precision in refused.get(self.backend, ()):
            raise ValueError(
                f"RPIAE_BACKEND={self.backend} has no RPIAE_PRECISION={self.precision}"
            )
        return self
