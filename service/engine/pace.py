"""How long steps and other stages take, and how much of those fits beside a step."""

from bisect import bisect_left
from typing import Literal, TypeAlias

from service.engine.calibration import Calibration

Stage: TypeAlias = Literal["prefill", "encode", "decode", "preview"]

_WEIGHT = 0.2  # of the newest measurement in a moving average
_FULL = 0.75  # of the most rows, from which a step tells the rate of a full batch


class Pace:
    """Seconds by calibration, then by moving averages of what really runs."""

    def __init__(self, calibration: Calibration) -> None:
        self._steps = dict(calibration.step_s)
        self._pieces: dict[Stage, float] = {
            "prefill": calibration.prefill_s,
            "encode": calibration.encode_s,
            "decode": calibration.decode_s,
            "preview": calibration.decode_s,
        }
        self._max_rows = calibration.max_rows
        step_s = self.step_s(self._max_rows)
        self.row_steps_per_s = self._max_rows / step_s if step_s else 0.0
        """Model rows times steps in a second at a full batch, with all that goes on beside it."""

    def step_s(self, num_rows: int) -> float:
        """Seconds of a step of so many rows; between sizes that have run, in proportion; 0 if
        nothing is known yet.
        """
        if num_rows in self._steps:
            return self._steps[num_rows]
        sizes = sorted(self._steps)
        place = bisect_left(sizes, num_rows)
        if not sizes or num_rows < 1:
            return 0.0
        if place == len(sizes):
            return self._steps[sizes[-1]] * num_rows / sizes[-1]
        if place == 0:
            return self._steps[sizes[0]]
        low, high = sizes[place - 1], sizes[place]
        share = (num_rows - low) / (high - low)
        return (1 - share) * self._steps[low] + share * self._steps[high]

    def piece_s(self, stage: Stage) -> float:
        """Seconds of one row of prefill, or one image of the model's own size."""
        return self._pieces[stage]

    def note_step(self, num_rows: int, seconds: float) -> None:
        """A step of so many rows has run."""
        before = self.step_s(num_rows)
        # A machine that paused once has not become slow: what is more than twice counts as twice.
        newest = min(seconds, 2 * before) if before else seconds
        self._steps[num_rows] = _average(before, newest)

    def note_pieces(self, stage: Stage, amount: float, seconds: float) -> None:
        """Rows, or images as multiples of the model's own size, have run."""
        if amount > 0:
            self._pieces[stage] = _average(self._pieces[stage], seconds / amount)

    def note_tick(self, num_rows: int, seconds: float) -> None:
        """A step and what ran beside it took so long in all; counts where the batch was full."""
        if num_rows >= _FULL * self._max_rows and seconds > 0:
            self.row_steps_per_s = _average(self.row_steps_per_s, num_rows / seconds)


class SpareTime:
    """How much of the other stages one tick does beside its step.

    All of them together get the time of one step, so that pictures on their way wait no longer than
    that. What is longer than the time that is left still comes: one piece in a tick, of the stage
    that has waited longest for its turn. A new picture's prefill never waits, and a preview has no
    turn: it may come too late.
    """

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._left_s: float | None = None
        self._untouched = True
        self._turn_taken = False
        self._refused: list[Stage] = []  # who waits for a turn, longest first
        self._asked: set[Stage] = set()

    def begin(self, seconds: float | None) -> None:
        """A tick begins whose step takes so long; None: nothing steps that could be held up, and 0:
        nothing is known yet.
        """
        self._left_s = seconds or None
        self._untouched, self._turn_taken = True, False
        # Who did not ask again has nothing left to do.
        self._refused = [stage for stage in self._refused if stage in self._asked]
        self._asked.clear()

    def pieces(self, stage: Stage, most: int) -> int:
        """How many pieces a stage with something to do may run now, 0 to `most`."""
        if self._left_s is None:
            return most
        self._asked.add(stage)
        piece_s = self._pace.piece_s(stage)
        fitting = 0
        if self._left_s > 0:
            fitting = most if piece_s <= 0 else int(self._left_s / piece_s)
        if not fitting and (stage == "prefill" or self._takes_turn(stage)):
            fitting = 1
        if fitting and stage in self._refused:
            self._refused.remove(stage)
        elif not fitting and stage != "preview" and stage not in self._refused:
            self._refused.append(stage)
        return min(fitting, most)

    def spend(self, stage: Stage, amount: float, seconds: float) -> None:
        """A stage ran `amount` pieces."""
        self._pace.note_pieces(stage, amount, seconds)
        self._untouched = False
        if self._left_s is not None:
            self._left_s -= seconds

    def _takes_turn(self, stage: Stage) -> bool:
        first = self._refused[0] == stage if self._refused else self._untouched
        if self._turn_taken or not first:
            return False
        self._turn_taken = True
        return True


def _average(before: float, newest: float) -> float:
    return newest if before == 0 else (1 - _WEIGHT) * before + _WEIGHT * newest
