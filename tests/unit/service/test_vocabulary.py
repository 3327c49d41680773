import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.manifest import BundleError, Manifest
from models.text import SPECIAL_TOKENS, PromptTokenizer
from models.text import split_words as split_as_tokenizer
from service.api.vocabulary import Vocabulary, split_words, words_header


def manifest(vocabulary_file: str | None) -> Manifest:
    return Manifest(
        name="tiny",
        tasks=["generate"],
        image_size=(32, 32),
        latent_shape=(4, 2, 2),
        latents_mean=[0.0],
        latents_std=[1.0],
        timestep_shift=1.0,
        vocabulary_file=vocabulary_file,
    )


@given(st.text())
def test_words_are_split_as_the_tokenizer_splits_them(prompt):
    assert split_words(prompt) == split_as_tokenizer(prompt)


def test_unknown_words_are_the_tokenizers(tmp_path):
    words = [*SPECIAL_TOKENS, "a", "red", "circle"]
    (tmp_path / "words.json").write_text(json.dumps(words))
    vocabulary = Vocabulary.read(tmp_path, manifest("words.json"))
    assert vocabulary is not None
    prompt = "A Red,circle! on a café-table, a café"
    assert vocabulary.unknown_words(prompt) == ["on", "café", "table"]
    assert set(PromptTokenizer(words, 32).unknown_words(prompt)) == {"on", "café", "table"}


def test_header_values_are_ascii_and_short():
    assert words_header(["café", "a,b", "été"]) == "caf%C3%A9,a%2Cb,%C3%A9t%C3%A9"
    assert len(words_header(["x"] * 100).split(",")) == 20
    assert len(words_header(["é" * 3000])) < 1000


def test_a_model_without_vocabulary(tmp_path):
    assert Vocabulary.read(tmp_path, manifest(None)) is None


@pytest.mark.parametrize("content", ["{", '{"a": 1}', "[1, 2]"])
def test_a_vocabulary_that_is_no_list_of_words(tmp_path, content):
    (tmp_path / "words.json").write_text(content)
    with pytest.raises(BundleError, match="vocabulary"):
        Vocabulary.read(tmp_path, manifest("words.json"))
    with pytest.raises(BundleError, match="cannot be read"):
        Vocabulary.read(tmp_path, manifest("missing.json"))
