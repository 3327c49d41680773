"""Every metric of the service in one place: base units, few label values, no ids, no prompts.

A gateway sets the queue's gauges from Redis when it is scraped; a worker exports its own on its
own port. Those of a GPU have no samples where NVML tells nothing.
"""

from contextlib import suppress

from prometheus_client import Counter, Gauge, Histogram, Info

_LATENCY_BUCKETS_S = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0,
)  # fmt: skip
_STEP_BUCKETS_S = (
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032,
    0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096,
)  # fmt: skip
_ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)

REQUESTS = Counter(
    "rpiae_requests",
    "Requests that were answered; outcome: ok, client_error, limited, rejected, cancelled, "
    "expired, failed, unavailable",
    ["task", "outcome"],
)
REQUEST_SECONDS = Histogram(
    "rpiae_request_seconds",
    "From the request's first byte to the answer's last",
    ["task"],
    buckets=_LATENCY_BUCKETS_S,
)

QUEUE_DEPTH = Gauge("rpiae_queue_depth", "Jobs that wait for a worker", ["priority"])
QUEUE_OLDEST_SECONDS = Gauge(
    "rpiae_queue_oldest_seconds", "How long the oldest waiting job has waited", ["priority"]
)
REDIS_MEMORY_BYTES = Gauge("rpiae_redis_memory_bytes", "Memory that the queue's Redis uses")
REDIS_MEMORY_LIMIT_BYTES = Gauge(
    "rpiae_redis_memory_limit_bytes", "Memory that the queue's Redis may use; 0: no limit is set"
)
QUEUE_WAIT_SECONDS = Histogram(
    "rpiae_queue_wait_seconds",
    "From arrival in the queue to the start on a worker",
    ["task", "priority"],
    buckets=_LATENCY_BUCKETS_S,
)

ACTIVE_ROWS = Gauge("rpiae_active_rows", "Model rows in the running batch", ["worker"])
STEP_BATCH_ROWS = Histogram(
    "rpiae_step_batch_rows", "Model rows per velocity call", buckets=_ROW_BUCKETS
)
STEP_PADDING_ROWS = Counter(
    "rpiae_step_padding_rows", "Copies of rows that only filled a batch up to a size that runs fast"
)
STEP_SECONDS = Histogram(
    "rpiae_step_seconds", "Duration of one velocity call", buckets=_STEP_BUCKETS_S
)
STAGE_SECONDS = Histogram(
    "rpiae_stage_seconds",
    "Time of a job in one stage: prefill, denoise, encode, decode, compress",
    ["stage"],
    buckets=_LATENCY_BUCKETS_S,
)
PREVIEWS = Counter("rpiae_previews", "Previews that were sent")
PREVIEW_SECONDS = Counter("rpiae_preview_seconds", "Time in which the engine decoded previews")
ROW_STEPS_PER_SECOND = Gauge(
    "rpiae_row_steps_per_second",
    "Model rows times steps in a second that a full batch makes, a moving average",
    ["worker"],
)
IMAGES = Counter("rpiae_images", "Pictures that were delivered", ["task"])

REDELIVERIES = Counter("rpiae_redeliveries", "Jobs handed out again after a lease ended")
DEAD_LETTERS = Counter("rpiae_dead_letters", "Jobs given up after too many deliveries")
LEASES_LOST = Counter("rpiae_leases_lost", "Jobs dropped because another worker took them over")
DEADLINES = Counter("rpiae_deadline", "Jobs with a deadline that ended; met: true, false", ["met"])

WORKERS = Gauge("rpiae_workers", "Live workers")
MODEL = Info("rpiae_model", "The served model")
BACKEND_WORKERS = Gauge(
    "rpiae_backend_workers", "Workers by the runtime of their model", ["backend"]
)
UNUSABLE_BACKEND_WORKERS = Gauge(
    "rpiae_unusable_backend_workers",
    "Workers that could not use a runtime for which their bundle has files",
    ["backend"],
)
RELOADS = Counter(
    "rpiae_reloads", "Bundles that were to be swapped in; outcome: done, refused", ["outcome"]
)
DEVICE_MEMORY_BYTES = Gauge(
    "rpiae_device_memory_bytes",
    "Device memory that the worker's model holds; on a CPU, of its weights",
    ["worker"],
)
DEVICE_UTILIZATION_RATIO = Gauge(
    "rpiae_device_utilization_ratio",
    "Share of time in which the worker's engine computed, 0 to 1",
    ["worker"],
)

GPU_UTILIZATION_RATIO = Gauge(
    "rpiae_gpu_utilization_ratio",
    "Share of the last moments in which the GPU ran anything, whoever asked for it, 0 to 1",
    ["worker"],
)
GPU_MEMORY_BYTES = Gauge(
    "rpiae_gpu_memory_bytes", "Memory of the GPU in use, by all processes", ["worker"]
)
GPU_MEMORY_LIMIT_BYTES = Gauge(
    "rpiae_gpu_memory_limit_bytes", "Memory that the GPU has", ["worker"]
)
GPU_ENERGY_JOULES = Counter(
    "rpiae_gpu_energy_joules", "Energy that the GPU used since the worker started", ["worker"]
)

_OF_WORKERS = (
    ACTIVE_ROWS, ROW_STEPS_PER_SECOND, DEVICE_MEMORY_BYTES, DEVICE_UTILIZATION_RATIO,
    GPU_UTILIZATION_RATIO, GPU_MEMORY_BYTES, GPU_MEMORY_LIMIT_BYTES, GPU_ENERGY_JOULES,
)  # fmt: skip


def forget_worker(name: str) -> None:
    """Take back what a worker said that is no more while its process lives on."""
    for metric in _OF_WORKERS:
        with suppress(KeyError):
            metric.remove(name)
