"""Patches, sinusoids, rotary tables and what happens to positions on another grid."""

import math

import pytest
import torch

from models.positions import (
    patchify,
    resize_positions,
    rotary_table,
    rotate,
    sinusoidal_positions,
    unpatchify,
)


def test_patchify_is_undone_on_grids_that_are_not_square() -> None:
    x = torch.rand(2, 3, 8, 12)
    assert patchify(x, 4).shape == (2, 6, 48)
    assert torch.equal(unpatchify(patchify(x, 4), 4, (2, 3)), x)


def test_rotary_angles_follow_their_formula() -> None:
    cosines, sines = rotary_table((2, 3), 8)
    row, column = 1, 2
    token = row * 3 + column
    for pair, position, k in ((0, row, 0), (1, row, 1), (2, column, 0), (3, column, 1)):
        angle = position * 10000 ** (-2 * k / 4)
        assert float(cosines[token, 2 * pair]) == pytest.approx(math.cos(angle), abs=1e-6)
        assert float(sines[token, 2 * pair + 1]) == pytest.approx(math.sin(angle), abs=1e-6)


def test_rotations_depend_on_distance_alone() -> None:
    table = rotary_table((4, 4), 16)
    q, k = torch.randn(16), torch.randn(16)
    turned_q, turned_k = rotate(q.expand(16, 16), table), rotate(k.expand(16, 16), table)
    scores = turned_q @ turned_k.T
    assert torch.allclose(scores[0, 5], scores[5, 10], atol=1e-5)  # one row and one column further


def test_a_finer_grid_spans_the_trained_one() -> None:
    """Twice the cells: the mean of four neighbours stands where the trained cell stood."""
    cosines, sines = rotary_table((4, 4), 4, trained=(2, 2))
    angles = torch.atan2(sines, cosines).view(2, 2, 2, 2, 4).mean((1, 3))
    cosines, sines = rotary_table((2, 2), 4)
    assert torch.allclose(angles, torch.atan2(sines, cosines).view(2, 2, 4), atol=1e-6)


def test_sinusoids_encode_the_column_first() -> None:
    positions = sinusoidal_positions((3, 4), 8).view(3, 4, 8)
    assert torch.equal(positions[0, :, :4], positions[2, :, :4])
    assert torch.equal(positions[:, 0, 4:], positions[:, 3, 4:])
    expected = [math.sin(3), math.sin(3 / 100), math.cos(3), math.cos(3 / 100)]
    assert positions[0, 3, :4].tolist() == pytest.approx(expected, abs=1e-6)


def test_learned_positions_are_interpolated() -> None:
    positions = torch.rand(16, 5)
    assert resize_positions(positions, (4, 4), (4, 4)) is positions
    assert resize_positions(positions, (4, 4), (2, 7)).shape == (14, 5)
    ramp = torch.arange(4.0).repeat(4)[:, None]  # the column
    wide = resize_positions(ramp, (4, 4), (4, 8)).view(4, 8)
    assert torch.all(wide.diff(dim=1) > 0)
    assert torch.allclose(wide[0], wide[3], atol=1e-5)


@pytest.mark.parametrize(
    "call", [lambda: rotary_table((2, 2), 6), lambda: sinusoidal_positions((2, 2), 6)]
)
def test_widths_that_do_not_divide(call: object) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match="6 is not divisible by 4"):
        call()
