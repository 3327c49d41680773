"""Names and labels of the metrics are an interface: dashboards and alerts build on them."""

from prometheus_client.metrics import MetricWrapperBase

from service import metrics

INTERFACE = {
    "rpiae_active_rows": ("worker",),
    "rpiae_backend_workers": ("backend",),
    "rpiae_dead_letters": (),
    "rpiae_deadline": ("met",),
    "rpiae_device_memory_bytes": ("worker",),
    "rpiae_device_utilization_ratio": ("worker",),
    "rpiae_gpu_energy_joules": ("worker",),
    "rpiae_gpu_memory_bytes": ("worker",),
    "rpiae_gpu_memory_limit_bytes": ("worker",),
    "rpiae_gpu_utilization_ratio": ("worker",),
    "rpiae_images": ("task",),
    "rpiae_leases_lost": (),
    "rpiae_model": (),
    "rpiae_preview_seconds": (),
    "rpiae_previews": (),
    "rpiae_queue_depth": ("priority",),
    "rpiae_queue_oldest_seconds": ("priority",),
    "rpiae_queue_wait_seconds": ("task", "priority"),
    "rpiae_redeliveries": (),
    "rpiae_redis_memory_bytes": (),
    "rpiae_redis_memory_limit_bytes": (),
    "rpiae_request_seconds": ("task",),
    "rpiae_reloads": ("outcome",),
    "rpiae_requests": ("task", "outcome"),
    "rpiae_row_steps_per_second": ("worker",),
    "rpiae_stage_seconds": ("stage",),
    "rpiae_step_batch_rows": (),
    "rpiae_step_padding_rows": (),
    "rpiae_step_seconds": (),
    "rpiae_unusable_backend_workers": ("backend",),
    "rpiae_workers": (),
}


def test_names_and_labels() -> None:
    declared = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    assert {metric._name: metric._labelnames for metric in declared} == INTERFACE
