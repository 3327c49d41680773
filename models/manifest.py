"""The bundle's manifest: what a model can do and which files it consists of.

Imports no torch, so that the gateway can read it.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

MANIFEST_NAME = "manifest.json"
AUTOENCODER_FILE = "autoencoder.safetensors"
DENOISER_FILE = "denoiser.safetensors"
GUIDE_FILE = "guide.safetensors"
VOCABULARY_FILE = "vocabulary.json"
TOKENIZER_FILE = "tokenizer.json"
SCHEMA_VERSION = 1

Task = Literal["generate", "edit", "variation", "encode", "decode"]
Sampler = Literal["euler", "euler-reference", "heun", "dpmpp-2m", "unipc"]
Precision = Literal["fp32", "fp16", "bf16", "int8"]
GraphName = Literal["encode", "decode", "prefill", "prefill_source", "velocity", "guide_velocity"]
"""What an export consists of: `prefill` alone has no source; `guide_velocity` is autoguidance's."""
SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)


def min_steps(sampler: Sampler) -> int:
    """Fewest steps: `euler-reference` counts the grid's points, one more than its steps."""
    return 2 if sampler == "euler-reference" else 1


_NAME = r"^[a-zA-Z0-9._-]+$"


class BundleError(ValueError):
    """The bundle directory is missing, incomplete, altered or of another schema version."""


class BundleFile(BaseModel):
    """One file of the bundle, path relative to its directory."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    sha256: str
    bytes: int = Field(ge=0)


class Parity(BaseModel):
    """How an artifact compares with PyTorch on the same inputs.

    max_error: largest difference over all outputs, batches and context lengths, divided by the
    output's largest absolute value where that is above 1.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    passed: bool
    max_error: float
    tolerance: float
    batches: list[int]
    context_lengths: list[int] = Field(default_factory=list, description="of the graphs with one")


class Artifact(BaseModel):
    """One graph as files of the bundle, the model first."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    graph: GraphName
    files: list[BundleFile] = Field(min_length=1)
    parity: Parity


class EngineTarget(BaseModel):
    """The only GPU model and TensorRT version that an engine runs on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    gpu: str
    compute_capability: str
    tensorrt: str


class Export(BaseModel):
    """A bundle's graphs for another runtime, and whether they draw the same pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    runtime: Literal["onnx", "tensorrt"] = "onnx"
    target: EngineTarget | None = Field(default=None, description="of TensorRT's engines")
    precision: Precision
    proven_by: Literal["onnxruntime", "onnxruntime-rounded", "tensorrt"] = Field(
        default="onnxruntime",
        description="what ran the graphs; rounded: in fp32, every value rounded to the precision",
    )
    opset: int
    weights_sha256: str = Field(description="of the weights that it was made from")
    made_with: dict[str, str] = Field(description="versions of the programs that made it")
    artifacts: list[Artifact]
    picture_psnr_db: float | None = Field(
        description="least of all pictures, against PyTorch's of the same seed"
    )
    min_picture_psnr_db: float = Field(description="what it had to reach")

    @property
    def passed(self) -> bool:
        """Whether every graph and every picture came close enough."""
        drawn = self.picture_psnr_db is None or self.picture_psnr_db >= self.min_picture_psnr_db
        return drawn and all(artifact.parity.passed for artifact in self.artifacts)


class Manifest(BaseModel):
    """Contents of `manifest.json`. Sizes in pixels, shapes without the batch axis."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(default=SCHEMA_VERSION, description="another one is refused")
    name: str = Field(pattern=_NAME)
    description: str = ""
    licence: str = "Apache-2.0"
    tasks: list[Task] = Field(min_length=1, description="others are refused")
    image_size: tuple[int, int] = Field(description="height, width")
    latent_shape: tuple[int, int, int] = Field(description="channels, height, width")
    other_sizes: bool = Field(
        default=False,
        description="encode and decode also run other sizes, in whole latent cells",
    )
    latents_mean: list[float] = Field(description="one value, or one per channel")
    latents_std: list[float] = Field(description="one value, or one per channel")
    timestep_shift: float = Field(ge=1, description="moves the sampler's times towards noise")
    default_steps: int = Field(default=20, ge=1, description="where a request says nothing")
    max_steps: int = Field(default=100, ge=1, description="more are refused")
    default_guidance_scale: float = Field(default=1.0, ge=0, description="1 is off")
    default_image_guidance_scale: float = Field(default=1.0, ge=0, description="1 is off")
    sampler: Sampler = Field(default="euler", description="where a request names none")
    guidance: Literal["classifier-free", "autoguidance"] = Field(
        default="classifier-free",
        description="what guidance starts from: the model without its prompt, or a weaker model",
    )
    guidance_interval: tuple[float, float] = Field(
        default=(0.0, 1.0), description="t between which guidance acts; 1 is noise"
    )
    max_prompt_tokens: int = Field(default=32, ge=1, description="what is beyond is cut off")
    vocabulary_file: str | None = Field(default=None, description="of a small text expert")
    tokenizer_file: str | None = Field(
        default=None, description="of a pretrained text expert, instead of a vocabulary"
    )
    class_names: list[str] | None = Field(default=None, description="of a model of classes")
    model: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="module name -> its config's fields"
    )
    training: dict[str, Any] = Field(default_factory=dict, description="how it was trained")
    draws: dict[str, Any] = Field(
        default_factory=dict, description="what the model was trained to draw"
    )
    quality: dict[str, Any] = Field(default_factory=dict, description="measured by `evaluate`")
    files: list[BundleFile] = Field(default_factory=list, description="all but the exports'")
    exports: list[Export] = Field(
        default_factory=list, description="made on this machine by `rpiae export`"
    )
    engines: list[Export] = Field(default_factory=list, description="TensorRT's, of the exports")

    @model_validator(mode="after")
    def _check_sizes(self) -> Self:
        channels = self.latent_shape[0]
        for name in ("latents_mean", "latents_std"):
            count = len(getattr(self, name))
            if count not in (1, channels):
                raise ValueError(f"{name} holds {count} values, expected 1 or {channels}")
        if min(*self.image_size, *self.latent_shape) < 1:
            raise ValueError("image_size and latent_shape must be positive")
        low, high = self.guidance_interval
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"guidance_interval must be 0 <= low <= high <= 1, got {self.guidance_interval}"
            )
        if self.default_steps < min_steps(self.sampler):
            raise ValueError(
                f"default_steps must be >= {min_steps(self.sampler)} for {self.sampler}, "
                f"got {self.default_steps}"
            )
        grid = self.latent_shape[1:]
        uneven = any(side % n for side, n in zip(self.image_size, grid, strict=True))
        if self.other_sizes and uneven:
            raise ValueError(
                f"other_sizes: image_size {self.image_size} is not divisible by the latents' "
                f"grid {grid}"
            )
        return self

    def module_fields(self, name: str) -> dict[str, Any]:
        """Config fields of one module of the model.

        Raises:
            BundleError: the model has no such module.
        """
        try:
            return dict(self.model[name])
        except KeyError:
            raise BundleError(f"manifest: model lacks {name}") from None


def check_name(name: str) -> str:
    """`name`, if a model may be called so.

    Raises:
        BundleError: it is empty or holds other characters.
    """
    if re.match(_NAME, name) is None:
        raise BundleError(
            f"a model cannot be called {name!r}: letters, digits, '.', '_' and '-' make a name"
        )
    return name


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """Manifest of the bundle in `directory`.

    Raises:
        BundleError: no manifest there, not JSON, or fields that do not fit the schema.
    """
    path = directory / MANIFEST_NAME
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{directory} is not a bundle: it holds no {MANIFEST_NAME}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path} is not valid JSON: {error}") from None
    version = fields.get("schema_version") if isinstance(fields, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version}, this program reads {SCHEMA_VERSION}"
        )
    try:
        return Manifest.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise BundleError(f"{path}: field {field or '(root)'}: {first['msg']}") from None


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write `manifest.json` atomically, leaving its file list as it is."""
    path = directory / MANIFEST_NAME
    partial = path.with_suffix(".partial")
    partial.write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def list_files(directory: Path, names: Iterable[str]) -> list[BundleFile]:
    """Size and SHA-256 of the named files of a bundle."""
    return [
        BundleFile(
            path=name,
            sha256=sha256_of(directory / name),
            bytes=(directory / name).stat().st_size,
        )
        for name in sorted(names)
    ]


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Check every listed file against its size and SHA-256.

    Raises:
        BundleError: names every file that is missing or altered.
    """
    if problems := file_problems(directory, manifest.files):
        raise BundleError(f"bundle {directory}: " + "; ".join(problems))


def file_problems(directory: Path, files: Iterable[BundleFile]) -> list[str]:
    """What is wrong with those files of a bundle, each in a few words; empty if nothing is."""
    problems = []
    for file in files:
        path = directory / file.path
        if not path.is_file():
            problems.append(f"{file.path} is missing")
        elif path.stat().st_size != file.bytes or sha256_of(path) != file.sha256:
            problems.append(f"{file.path} differs from its SHA-256 in the manifest")
    return problems
