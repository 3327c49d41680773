"""Boxes as clients write them, and what is refused."""

import numpy as np
import pytest

from service.boxes import (
    Box,
    array_of_boxes,
    boxes_of_array,
    check_boxes,
    format_boxes,
    parse_boxes,
    same_size,
)
from service.errors import InvalidRequest

BOXES = [Box(0, 8, 32, 16), Box(8, 0, 16, 32)]


def test_text_and_back():
    assert format_boxes(BOXES) == "0,8,32,16;8,0,16,32"
    assert parse_boxes(format_boxes(BOXES), param="box") == BOXES
    assert parse_boxes(" 0, 8,32 ,16 ; 8,0,16,32", param="box") == BOXES


def test_array_and_back():
    array = array_of_boxes(BOXES)
    assert array.dtype == np.int64
    assert array.shape == (2, 4)
    assert boxes_of_array(array, param="boxes") == BOXES
    assert array_of_boxes([]).shape == (0, 4)


@pytest.mark.parametrize(
    "text",
    ["", ";", "1,2,3", "1,2,3,4,5", "1,2,3,4;", "-1,0,4,4", "0,0,nan,4", "0,0,4.5,4", "a,b,c,d",
     "0 0 4 4", "0,0,4,4|0,0,4,4", "0,0,4,1e3", "٣,٣,٤,٤", f"0,0,4,{10**10}"],
)  # fmt: skip
def test_text_that_is_no_box(text):
    with pytest.raises(InvalidRequest, match="write left,top,width,height") as caught:
        parse_boxes(text, param="box")
    assert (caught.value.status, caught.value.param) == (422, "box")


@pytest.mark.parametrize(
    "array",
    [np.zeros((1, 4), np.float32), np.zeros((1, 4), np.bool_), np.zeros((1, 5), np.int64),
     np.zeros(4, np.int64), np.full((1, 4), np.nan)],
)  # fmt: skip
def test_arrays_that_are_no_boxes(array):
    with pytest.raises(InvalidRequest, match=r"send integers \[B, 4\]") as caught:
        boxes_of_array(array, param="boxes")
    assert (caught.value.status, caught.value.param) == (422, "boxes")


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (BOXES[:1], "holds 1 boxes for 2 pictures"),
        (BOXES + BOXES, "holds 4 boxes for 2 pictures"),
        ([BOXES[0], Box(0, 0, 0, 4)], "0,0,0,4 is empty"),
        ([BOXES[0], Box(0, 0, 4, -1)], "0,0,4,-1 is empty"),
        ([BOXES[0], Box(-1, 0, 4, 4)], "-1,0,4,4 leaves the frame of 32x48"),
        ([BOXES[0], Box(29, 0, 4, 4)], "29,0,4,4 leaves the frame"),
        ([BOXES[0], Box(0, 45, 4, 4)], "0,45,4,4 leaves the frame"),
        ([BOXES[0], Box(0, 0, 2**62, 1)], "leaves the frame"),
    ],
)
def test_boxes_that_do_not_fit(boxes, message):
    with pytest.raises(InvalidRequest, match=message) as caught:
        check_boxes(boxes, count=2, frame=(48, 32), param="box")
    assert (caught.value.status, caught.value.param) == (422, "box")


def test_boxes_may_touch_the_frame():
    check_boxes([Box(0, 0, 32, 48), Box(31, 47, 1, 1)], count=2, frame=(48, 32), param="box")


def test_boxes_of_one_size():
    assert same_size([])
    assert same_size([Box(0, 0, 4, 8), Box(3, 1, 4, 8)])
    assert not same_size(BOXES)
