"""Who may import whom, read from the source of every module."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("models", "training", "export", "service")

# A module of the left side may import, from this repository, its own folder and the right side.
ALLOWED = {
    "models": (),
    "training": ("models",),
    "export": ("models",),
    "service": ("models",),
    "service.jobs": ("models.manifest", "service.boxes", "service.errors", "service.settings"),
    "service.api": (
        "models.class_names",
        "models.manifest",
        "service.api_keys",
        "service.boxes",
        "service.errors",
        "service.jobs",
        "service.listener",
        "service.log",
        "service.metrics",
        "service.served_model",
        "service.settings",
        "service.shared_metrics",
        "service.sizes",
        "service.tasks",
        "service.tracing",
    ),
    "service.backends": ("models", "service.errors"),
    "service.engine": ("models", "service.backends.base", "service.errors"),
}

# Modules of the left side never import the packages of the right side.
FORBIDDEN = {
    "models": ("fastapi", "httpx", "pickle", "redis", "typer"),
    "models.class_names": ("torch",),
    "models.manifest": ("torch",),
    "service": ("pickle",),
    "service.api": ("opentelemetry", "torch"),
    "service.boxes": ("fastapi", "torch"),
    "service.errors": ("fastapi", "starlette", "torch"),
    "service.jobs": ("fastapi", "starlette", "torch"),
    "service.backends": ("fastapi", "redis"),
    "service.engine": ("fastapi", "opentelemetry", "redis"),
    "service.engine.scheduler": ("torch",),
    "service.served_model": ("fastapi", "torch"),
    "service.sizes": ("fastapi", "torch"),
    "service.tracing": ("torch",),
    "service.worker": ("opentelemetry",),
}


def imported_names(source: str, module: str) -> Iterator[str]:
    """Absolute dotted names that a module imports anywhere in its source, also inside functions.

    `from a.b import c` gives `a.b.c`, so that a rule on `a.b` and one on `a.b.c` both see it.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = ".".join(module.split(".")[: -node.level])
                base = f"{parent}.{base}".rstrip(".")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def violations(source: str, module: str) -> list[str]:
    """Sentences on every import of `module` that breaks a rule."""
    found = []
    rule = max((key for key in ALLOWED if inside(module, key)), key=len)
    allowed = (rule, *ALLOWED[rule])
    for name in imported_names(source, module):
        ours = name.split(".")[0] in (*ROOMS, "tests", "benchmarks")
        if ours and not any(inside(name, package) for package in allowed):
            found.append(f"{module} imports {name}; {rule} may import {', '.join(allowed)}")
        for part, banned in FORBIDDEN.items():
            if inside(module, part) and any(inside(name, package) for package in banned):
                found.append(f"{module} imports {name}, which {part} never does")
    return found


def source_files(room: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_only_what_they_may(room: str) -> None:
    found = [
        sentence
        for module, path in source_files(room)
        for sentence in violations(path.read_text(encoding="utf-8"), module)
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("models.bridge", "from training.losses import kl"),
        ("export.graphs", "import training.config"),
        ("service.cli", "def run():\n    from training.cli import train_command"),
        ("service.api.app", "from service import worker"),
        ("service.api.images.plans", "from ...engine.engine import Engine"),
        ("service.api.app", "import torch.nn as nn"),
        ("service.jobs.queue", "from service.api.app import create_app"),
        ("service.engine.scheduler", "from torch import Tensor"),
    ],
)
def test_a_broken_rule_is_found(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("service.api.images.plans", "from ..uploads import read_image"),
        ("service.api.app", "from models.manifest import Manifest"),
        ("service.worker", "from service.backends.base import Backend"),
        ("training.bridge", "from models.bridge import Posterior"),
    ],
)
def test_a_kept_rule_is_not_reported(module: str, source: str) -> None:
    assert violations(source, module) == []


@pytest.mark.parametrize("room", ROOMS)
def test_package_files_are_empty(room: str) -> None:
    """So that importing one module costs only that module."""
    filled = [module for module, path in source_files(room) if path.stem == "__init__"]
    filled = [m for m in filled if (ROOT / m.replace(".", "/") / "__init__.py").stat().st_size]
    assert filled == []


@pytest.mark.parametrize(
    "module", ["service.api.app", "service.jobs.queue", "service.otlp", "models.manifest"]
)
def test_gateway_starts_without_torch(module: str) -> None:
    program = f"import sys, {module}\nassert 'torch' not in sys.modules, 'torch was imported'"
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
