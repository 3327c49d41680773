"""A pretrained text expert from a folder: trained, bundled, loaded and painted with."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import Qwen2Config, Qwen2ForCausalLM

from models.bundle import load_bundle
from models.manifest import BundleError, read_manifest
from models.pretrained_text import PretrainedTokenizer
from models.text import NO_TOKEN
from models.text_denoiser import TextDenoiser
from service.offline import OfflineModel
from service.settings import load_settings
from tests.unit.training.conftest import TINY_STAGES, StageRunner, tiny_bundle_config
from tests.unit.training.sample_files import captioned_files, write_shard
from training.bundling import make_bundle
from training.captions import vocabulary
from training.checkpoint import CheckpointError
from training.config import DiffusionConfig
from training.data_config import DataConfig
from training.diffusion import make_denoiser
from training.dry_run import estimate
from training.painting import BundlePainter
from training.pretrained_text import load_text_expert, read_text_tokenizer

DIFFUSION = TINY_STAGES[-1]
assert isinstance(DIFFUSION, DiffusionConfig)
# Spaces part words, so a name of several words is not one piece of this vocabulary.
WORDS = ["<|end|>", "<unk>", *sorted({part for word in vocabulary() for part in word.split()})]
NUM_IDS = len(WORDS) + 8  # models embed more ids than their tokenizers have


def write_model(folder: Path) -> None:
    """The folder of a tiny Qwen2, as the hub would have it."""
    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=NUM_IDS,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen")
    write_model(path)
    return path


@pytest.fixture
def config(folder: Path) -> DiffusionConfig:
    denoiser = replace(
        DIFFUSION.denoiser,
        width=48,
        depth=2,
        num_heads=4,
        text_expert="qwen2",
        text_width=48,
        text_hidden_width=80,
        text_key_heads=2,
        vocabulary_size=NUM_IDS,
        max_prompt_tokens=12,
    )
    return replace(DIFFUSION, name="tiny-qwen", denoiser=denoiser, text_folder=str(folder), steps=4)


@pytest.fixture
def root(tmp_path: Path, tiny_runs: Path) -> Path:
    (tmp_path / "runs").mkdir()
    for run in tiny_runs.iterdir():
        (tmp_path / "runs" / run.name).symlink_to(run)
    return tmp_path / "runs"


@pytest.mark.parametrize("frozen", [False, True])
def test_it_trains_is_bundled_and_paints(
    root: Path, tmp_path: Path, config: DiffusionConfig, run_stage: StageRunner, frozen: bool
) -> None:
    config = replace(config, freeze_text=frozen)
    run_stage(config, root)
    trained = load_file(root / "tiny-qwen" / "checkpoint" / "denoiser.safetensors")
    start = make_denoiser(config, None, is_new=True).state_dict()
    changed = {name for name, tensor in trained.items() if not torch.equal(tensor, start[name])}
    assert "embed.weight" in changed
    assert any(name.startswith("text_blocks.0.query") for name in changed) != frozen
    bundle_config = replace(
        tiny_bundle_config(tmp_path / "bundle"), diffusion="tiny-qwen", decoder=None
    )
    make_bundle(bundle_config, root)
    manifest = read_manifest(tmp_path / "bundle")
    assert (manifest.tokenizer_file, manifest.vocabulary_file) == ("tokenizer.json", None)
    assert "tokenizer.json" in {file.path for file in manifest.files}
    bundle = load_bundle(tmp_path / "bundle")
    assert isinstance(bundle.tokenizer, PretrainedTokenizer)
    theirs = read_text_tokenizer(Path(config.text_folder), 12)
    prompts = ["a red circle", "", "a red circle " * 9, "<|end|>"]
    assert torch.equal(bundle.tokenizer.encode(prompts), theirs.encode(prompts))
    painter = BundlePainter.of(bundle)
    (picture,) = painter.paint(["a red circle on a white background"], [3])
    (edited,) = painter.edit([picture], ["make the circle blue"], [4])
    assert picture.shape == edited.shape == (128, 128, 3)
    assert OfflineModel(load_settings(bundle=tmp_path / "bundle")).unknown_words("a flurble") == []


def test_it_trains_on_captions(
    root: Path, tmp_path: Path, config: DiffusionConfig, run_stage: StageRunner
) -> None:
    """Without statistics, which only a vocabulary would need."""
    write_shard(tmp_path / "a" / "0.tar", captioned_files(range(6)))
    shards = DataConfig(kind="shards", path=str(tmp_path / "a"), crop="center", num_workers=0)
    run_stage(replace(config, data=shards, edit_share=0.0, statistics_images=0), root)
    saved = load_file(root / "tiny-qwen" / "checkpoint" / "autoencoder.safetensors")
    assert (saved["latents_std"] == 1).all()
    assert not saved["latents_mean"].any()


def test_prompts_end_are_cut_and_padded(folder: Path) -> None:
    tokenizer = read_text_tokenizer(folder, 4)
    ids = {word: number for number, word in enumerate(WORDS)}
    encoded = tokenizer.encode(["a red", "", "a a a a a", "<|end|>"]).tolist()
    assert encoded[0] == [ids["a"], ids["red"], 0, NO_TOKEN]
    assert encoded[1] == [0, NO_TOKEN, NO_TOKEN, NO_TOKEN]
    assert encoded[2] == [ids["a"]] * 3 + [0]
    assert encoded[3].count(0) == 1  # what a user writes is no end token
    assert tokenizer.num_ids == len(WORDS)


def test_the_dry_run_counts_a_frozen_text_expert_apart(config: DiffusionConfig) -> None:
    model = TextDenoiser(config.denoiser)
    total = sum(parameter.numel() for parameter in model.parameters())
    model.freeze_text()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    found = estimate(replace(config, freeze_text=True), 1)
    assert found.parameters["denoiser"] == (trained, True)
    assert found.parameters["denoiser, frozen part"] == (total - trained, False)
    assert found.memory["gradients"] == 4 * trained


def test_a_model_of_other_sizes_is_refused_with_what_to_set(config: DiffusionConfig) -> None:
    other = replace(config.denoiser, depth=3, text_theta=1e4)
    with pytest.raises(
        CheckpointError, match=r"needs denoiser\.depth=2 denoiser\.text_theta=1000000\.0$"
    ):
        load_text_expert(TextDenoiser(other), Path(config.text_folder))


def test_what_a_folder_lacks_is_named(tmp_path: Path, config: DiffusionConfig) -> None:
    with pytest.raises(CheckpointError, match=r"text_folder: there is no .*/tokenizer\.json"):
        read_text_tokenizer(tmp_path, 12)
    with pytest.raises(CheckpointError, match=r"text_folder: there is no .*config\.json"):
        load_text_expert(TextDenoiser(config.denoiser), tmp_path)
    write_model(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="names no eos_token"):
        read_text_tokenizer(tmp_path, 12)
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": {"content": "</s>"}}')
    with pytest.raises(BundleError, match="has no token '</s>'"):
        read_text_tokenizer(tmp_path, 12)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="cannot be read as a tokenizer"):
        read_text_tokenizer(tmp_path, 12)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(BundleError, match=r"missing text_blocks\.1\.up\.weight$"):
        load_text_expert(TextDenoiser(config.denoiser), tmp_path)
