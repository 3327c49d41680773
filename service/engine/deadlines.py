"""Jobs that cannot end in time, so that what they would cost goes to others."""

from service.engine.scheduler import DenoiseJob
from service.errors import DeadlineExceeded

# A job is given up early when it needs this many times what is left: its steps may become faster
# as neighbours leave, and measured times are noisy.
_MARGIN = 2.0


def passed(deadline_at: float | None, now: float) -> DeadlineExceeded | None:
    """The error of a job whose deadline has passed; times in Unix seconds."""
    if deadline_at is None or now <= deadline_at:
        return None
    return DeadlineExceeded("the deadline passed while the job ran: allow more time")


def hopeless(job: DenoiseJob, step_s: float, now: float) -> DeadlineExceeded | None:
    """The error of a job whose steps cannot all run before its deadline.

    step_s: measured seconds of a step, 0 if unknown.
    """
    if job.deadline_at is None:
        return None
    num_left, left_s = job.num_steps - job.step, job.deadline_at - now
    if num_left * step_s <= _MARGIN * left_s:
        return None
    return DeadlineExceeded(
        f"the deadline cannot be met: {num_left} steps are left, which take about "
        f"{num_left * step_s:.3g} s, and {max(0.0, left_s):.3g} s: ask for fewer steps or allow "
        "more time"
    )
