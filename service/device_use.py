"""What the engine's ticks tell about the device: how fast it steps, and how busy it is."""

import time

from service import metrics
from service.engine.work import Tick
from service.log import get_logger

log = get_logger(__name__)


class DeviceUse:
    """Kept for the worker's announcements, and shown as metrics.

    Attributes:
        step_s: seconds of a step, a moving average.
        row_steps_per_s: model rows times steps in a second that a full batch makes.
    """

    def __init__(self, step_s: float, row_steps_per_s: float) -> None:
        self.step_s = step_s
        self.row_steps_per_s = row_steps_per_s
        self._busy_s = 0.0
        self._since = time.perf_counter()

    def note(self, tick: Tick) -> None:
        """Count a tick."""
        for fault in tick.faults:
            log.warning("a batch failed and was split", reason=str(fault), exc_info=fault)
        for stage, seconds in tick.stage_seconds:
            self._busy_s += seconds
            if stage == "preview":
                metrics.PREVIEW_SECONDS.inc(seconds)
            elif stage == "denoise":
                metrics.STEP_SECONDS.observe(seconds)
        if tick.step_rows:
            self.step_s, self.row_steps_per_s = tick.step_s, tick.row_steps_per_s
            metrics.STEP_BATCH_ROWS.observe(tick.step_rows)
            metrics.STEP_PADDING_ROWS.inc(tick.padding_rows)

    def pop_busy(self) -> float:
        """Share of the time since the last call in which the engine computed, 0 to 1."""
        now = time.perf_counter()
        busy = self._busy_s / max(now - self._since, 1e-9)
        self._busy_s, self._since = 0.0, now
        return min(1.0, busy)
