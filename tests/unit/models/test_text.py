"""Prompts to ids."""

import pytest

from models.text import END_ID, PAD_ID, SPECIAL_TOKENS, UNKNOWN_ID, PromptTokenizer


@pytest.fixture
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer([*SPECIAL_TOKENS, "a", "red", "star"], max_tokens=5)


def test_words_end_and_padding(tokenizer: PromptTokenizer) -> None:
    ids = tokenizer.encode(["A red, STAR!", ""])
    assert ids.tolist() == [[3, 4, 5, END_ID, PAD_ID], [END_ID, *[PAD_ID] * 4]]


def test_unknown_words_do_not_crash(tokenizer: PromptTokenizer) -> None:
    prompt = "a réd \u2603 star"
    assert tokenizer.encode([prompt])[0].tolist()[:4] == [3, UNKNOWN_ID, 5, END_ID]
    assert tokenizer.unknown_words(prompt) == ["réd"]


def test_long_prompts_are_cut_before_the_end_token(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.encode(["star " * 9])[0].tolist() == [5, 5, 5, 5, END_ID]


@pytest.mark.parametrize(
    ("words", "max_tokens", "message"),
    [
        (["a"], 5, "starts with"),
        ([*SPECIAL_TOKENS, "a", "a"], 5, "each word once"),
        ([*SPECIAL_TOKENS], 1, "max_tokens must be >= 2"),
    ],
)
def test_bad_vocabularies_are_refused(words: list[str], max_tokens: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptTokenizer(words, max_tokens)
