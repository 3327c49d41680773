"""Class names as people write them, and what they are told when there is no such class."""

import random
import re
import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.class_labels import ClassEncoder
from models.class_names import ClassNames, UnknownClass, imagenet_class_names
from models.manifest import BundleError, Manifest

IMAGENET = imagenet_class_names()
CLASSES = ClassNames(IMAGENET)


def message(prompt: str, names: ClassNames = CLASSES) -> str:
    """What a prompt that names no class is answered."""
    with pytest.raises(UnknownClass) as caught:
        names.resolve(prompt)
    return str(caught.value)


def unshared() -> list[tuple[str, int]]:
    """Every name that only one class has, with that class."""
    owners: dict[str, set[int]] = {}
    for index, entry in enumerate(IMAGENET):
        for name in entry.split(", "):
            owners.setdefault(name.lower(), set()).add(index)
    return [(name, indices.pop()) for name, indices in owners.items() if len(indices) == 1]


UNSHARED = unshared()


def test_imagenet_has_its_thousand_classes_in_order():
    assert len(IMAGENET) == len(CLASSES) == 1000
    known = {0: "tench", 1: "goldfish", 207: "golden retriever", 281: "tabby", 555: "fire engine"}
    known |= {292: "tiger", 817: "sports car", 963: "pizza", 980: "volcano", 999: "toilet tissue"}
    assert {index: CLASSES.label(index) for index in known} == known
    assert all(entry == entry.strip() and entry.isascii() for entry in IMAGENET)


@pytest.mark.parametrize(
    ("prompt", "index"),
    [
        ("207", 207),
        (" 0 ", 0),
        ("0007", 7),
        ("999", 999),
        ("golden retriever", 207),
        ("Golden  Retriever\n", 207),
        ("golden-retriever", 207),
        ("golden_retriever", 207),
        ("tench", 0),
        ("TINCA TINCA", 0),
        ("tench, Tinca tinca", 0),
        ("tench,tinca_tinca", 0),
        ("flat coated retriever", 205),
        ("jack-o-lantern", 607),
        ("Jack O\N{RIGHT SINGLE QUOTATION MARK} Lantern", 607),
        ("maillot, tank suit", 639),
        ("R.V.", 757),
    ],
)
def test_ways_to_name_a_class(prompt, index):
    assert CLASSES.resolve(prompt) == index


@given(st.sampled_from(range(1000)))
def test_every_index_and_every_whole_entry_of_several_names_resolve(index):
    assert CLASSES.resolve(str(index)) == index
    if "," in IMAGENET[index]:
        assert CLASSES.resolve(IMAGENET[index]) == index


@given(st.sampled_from(UNSHARED), st.data())
def test_case_separators_and_white_space_make_no_difference(named, data):
    name, index = named
    parts = re.split(r"[ -]", name)
    written = parts[0]
    for part in parts[1:]:
        written += data.draw(st.sampled_from([" ", "  ", "-", "_", "\t", " - "])) + part
    if data.draw(st.booleans()):
        written = written.swapcase()
    assert CLASSES.resolve(f" {written} ") == index


@pytest.mark.parametrize(
    ("prompt", "choices"),
    [
        ("crane", "134 (crane) or 517 (crane)"),
        ("Maillot", "638 (maillot) or 639 (tank suit)"),
        ("cardigan", "264 (Cardigan Welsh corgi) or 474 (cardigan)"),
        ("panda", "387 (lesser panda) or 388 (giant panda)"),
    ],
)
def test_a_name_that_classes_share_names_them_all(prompt, choices):
    assert message(prompt) == f'"{prompt}" names 2 classes: send {choices}'


@pytest.mark.parametrize("index", ["1000", "-1", "+1000", "0001000", "9" * 5000])
def test_an_index_out_of_range_is_told_the_range(index):
    assert "is out of range: send an index from 0 to 999" in message(index)
    assert len(message(index)) < 200


def test_the_first_name_near_a_spelling_mistake_is_the_right_one():
    text = message("golden retreiver")
    assert text == (
        '"golden retreiver" is no class of this model: the nearest names are golden retriever '
        "(207); an index from 0 to 999 works too"
    )


def test_part_of_a_name_lists_the_names_it_is_part_of():
    found = {index for _, index in CLASSES.nearest("retriever")}
    assert found == {205, 206, 207, 208, 209}
    assert {index for _, index in CLASSES.nearest("retreiver")} == found
    assert message("shark").count("shark (") == 3


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a golden retriever on the beach", "golden retriever"),
        ("golden retrievers", "golden retriever"),
        ("german shepard", "German shepherd"),
        ("gold fish", "goldfish"),
        ("pizzza", "pizza"),
        ("airplane", "plane"),
    ],
)
def test_the_nearest_name_of_what_people_write(prompt, name):
    assert CLASSES.nearest(prompt)[0][0] == name


def test_one_wrong_letter_still_finds_the_class():
    """Of all labels with a letter left out, doubled, replaced or swapped with the next one."""
    letters = random.Random(3)
    asked = found = 0
    for index in range(len(CLASSES)):
        label = CLASSES.label(index)
        k = letters.randrange(len(label) - 1)
        other = letters.choice(string.ascii_lowercase)
        for wrong in (
            label[:k] + label[k + 1 :],
            label[:k] + label[k] + label[k:],
            label[:k] + other + label[k + 1 :],
            label[:k] + label[k + 1] + label[k] + label[k + 2 :],
        ):
            near = [each for _, each in CLASSES.nearest(wrong)]
            asked += 1
            found += index in near
    assert found / asked > 0.98


@pytest.mark.parametrize("prompt", ["", "  ", ",", "-", "xyzzy qwrt", "红色的圆", "\x00", "1.5"])
def test_what_resembles_no_name_still_hears_of_indices(prompt):
    text = message(prompt)
    assert "no name is near it" in text
    assert "an index from 0 to 999 works too" in text


@given(st.text(max_size=300))
def test_a_refusal_is_one_short_line_whatever_the_prompt(prompt):
    text = message("zq" + prompt)
    assert len(text) < 400
    assert len(text.splitlines()) == 1


def test_a_long_prompt_is_quoted_in_part():
    assert message("zq " * 5000).startswith('"' + ("zq " * 22)[:64] + '..."')


@pytest.mark.parametrize(
    ("names", "text"),
    [([], "must not be empty"), (["a", " , "], "class 1 has no name"), (["-"], "class 0 has no")],
)
def test_names_that_are_none(names, text):
    with pytest.raises(ValueError, match=text):
        ClassNames(names)


def test_a_name_given_twice_in_one_entry_is_one_name():
    names = ClassNames(["tool kit, tool-kit", "yurt"])
    assert names.resolve("tool_kit") == 0
    assert "0 to 1" in message("2", names)


def manifest(class_names: list[str] | None) -> Manifest:
    return Manifest(
        name="tiny",
        tasks=["generate"],
        image_size=(32, 32),
        latent_shape=(4, 2, 2),
        latents_mean=[0.0],
        latents_std=[1.0],
        timestep_shift=1.0,
        class_names=class_names,
    )


def test_the_names_of_a_manifest():
    assert ClassNames.of(manifest(None)) is None
    found = ClassNames.of(manifest(["cat", "dog"]))
    assert found is not None
    assert found.resolve("dog") == 1
    with pytest.raises(BundleError, match="class_names: class 1 has no name"):
        ClassNames.of(manifest(["cat", ""]))


def test_prompts_to_labels():
    encoder = ClassEncoder(IMAGENET)
    labels = encoder.encode(["Tinca tinca", "", "207", " \n"])
    assert labels.dtype == torch.int64
    assert labels.tolist() == [0, 1000, 207, 1000]
    assert encoder.encode([]).shape == (0,)
    with pytest.raises(UnknownClass, match="golden retriever"):
        encoder.encode(["tench", "golden retreiver"])
