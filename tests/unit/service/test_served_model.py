"""What workers tell gateways of their model, and when gateways take it over."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from models.manifest import BundleError, Manifest, read_manifest, write_manifest
from service.api import following
from service.api.following import follow_workers
from service.api.state import CurrentModel
from service.errors import QueueUnavailable
from service.reloading import check_fits
from service.served_model import ServedModel

Info = dict[str, Any]


@pytest.fixture
def model(tiny_bundle: Path) -> ServedModel:
    return ServedModel.read(tiny_bundle)


def renamed(model: ServedModel, **fields: Any) -> ServedModel:
    """The same model with other fields in its manifest."""
    manifest = model.manifest.model_copy(update=fields)
    return ServedModel(manifest, model.written_at, model.vocabulary, model.class_names)


def test_it_is_the_same_after_its_journey(model: ServedModel, tmp_path: Path) -> None:
    assert ServedModel.from_json(model.to_json()) == model
    assert model.vocabulary is not None
    assert model.vocabulary.unknown_words("a red zebra") == ["zebra"]
    names = {"name": "classes", "class_names": ["tench", "crane"], "vocabulary_file": None}
    write_manifest(tmp_path, model.manifest.model_copy(update=names))
    classes = ServedModel.from_json(ServedModel.read(tmp_path).to_json())
    assert classes.class_names is not None
    assert classes.class_names.resolve("Tench") == 0


def test_its_digest_is_that_of_what_it_can_do(model: ServedModel, exported_bundle: Path) -> None:
    later = ServedModel(model.manifest, model.written_at + 9, model.vocabulary, model.class_names)
    assert later.digest == model.digest
    assert renamed(model, exports=read_manifest(exported_bundle).exports).digest == model.digest
    wordless = ServedModel(model.manifest, model.written_at, None, None)
    others = [renamed(model, name="other"), renamed(model, max_steps=9), wordless]
    assert len({each.digest for each in (model, *others)}) == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "Expecting value"),
        ("[]", "no description of a model"),
        ("{}", "no description of a model: KeyError"),
        ('{"manifest": {}, "vocabulary": null}', "validation errors for Manifest"),
    ],
)
def test_what_is_no_description_is_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        ServedModel.from_json(text)


class Service:
    """Workers that announce what they are told to, and a gateway that follows them."""

    def __init__(self, model: ServedModel) -> None:
        self.workers: dict[str, Info] = {}
        self.described: dict[str, str] = {}
        self.away = False
        self.model = CurrentModel(model)
        self.gateway: Any = SimpleNamespace(
            model=self.model,
            serving_workers=self._serving_workers,
            reloads=SimpleNamespace(description=self._description),
        )

    async def _serving_workers(self) -> dict[str, Info]:
        if self.away:
            raise QueueUnavailable("Redis does not answer")
        return self.workers

    async def _description(self, digest: str) -> str | None:
        return self.described.get(digest)

    @property
    def name(self) -> str:
        return self.model.served.manifest.name

    def announce(self, *models: ServedModel | None) -> None:
        self.workers = {
            str(index): {} if model is None else {"digest": model.digest}
            for index, model in enumerate(models)
        }


async def looks(count: int = 3) -> None:
    """Let the gateway look at its workers a few times."""
    for _ in range(count):
        await asyncio.sleep(0.01)


async def test_a_gateway_follows_its_workers_when_they_agree(
    model: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "_LOOK_EVERY_S", 0)
    monkeypatch.setattr(following, "_show", lambda _: None)
    other, broken = renamed(model, name="other"), renamed(model, name="broken")
    service = Service(model)
    service.gateway.manifest = model.manifest
    service.described = {model.digest: model.to_json(), other.digest: other.to_json()}
    task = asyncio.create_task(follow_workers(service.gateway))
    for models in ((), (model, other), (None, other), (None,), (broken,)):
        service.announce(*models)
        await looks()
        assert service.name == "tiny"
    service.announce(other, other)
    await looks()
    assert service.name == "other"
    service.away = True
    await looks()
    service.away = False
    service.described[broken.digest] = json.dumps({"manifest": {"of": "the future"}})
    service.announce(broken)
    await looks()
    assert service.name == "other"
    service.announce(model)
    await looks()
    assert service.name == "tiny"
    task.cancel()


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"image_size": (64, 64), "latent_shape": (8, 8, 8)}, r"image_size is \(64, 64\), not"),
        ({"latent_shape": (4, 4, 4)}, r"latent_shape is \(4, 4, 4\), not \(8, 4, 4\)"),
        ({"tasks": ["generate", "decode"]}, "it has no task edit, encode, variation"),
        ({"other_sizes": False}, "encodes and decodes no other sizes"),
        ({"class_names": ["tench"]}, "one of both reads sentences and the other classes"),
    ],
)
def test_a_model_for_other_jobs_takes_no_place(
    model: ServedModel, fields: dict[str, Any], problem: str
) -> None:
    before: Manifest = model.manifest
    other = before.model_copy(update={"name": "other", **fields})
    with pytest.raises(BundleError, match=problem):
        check_fits(other, before)
    check_fits(before.model_copy(update={"name": "other", "max_steps": 7}), before)
