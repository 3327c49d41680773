"""deploy/k8s against the schemas of Kubernetes and KEDA, and against the service it describes."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from redis.asyncio import Redis

from service.jobs.job import PRIORITIES
from service.jobs.queue import JobQueue
from service.settings import Settings

ROOT = Path(__file__).parents[2]
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = sorted(path.name for path in (K8S / "overlays").iterdir())
VERSIONS = ("1.30", "1.37")
SECRETS = {"rpiae-redis": {"url", "address", "password"}, "rpiae-api-keys": {"api_keys"}}

# What KEDA's own definitions say of the fields that are used here, and of no others.
_INTEGER, _TEXT = {"type": "integer", "minimum": 0}, {"type": "string", "minLength": 1}


def _closed(*required: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _many(item: Any) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


_POLICY = _closed(
    "type",
    "value",
    "periodSeconds",
    type={"enum": ["Pods", "Percent"]},
    value=_INTEGER,
    periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
)
_SCALING = _closed(
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    policies=_many(_POLICY),
)
_TRIGGER = _closed(
    "type",
    "metadata",
    type={"enum": ["redis-streams", "redis-sentinel-streams"]},
    metadata={"type": "object", "additionalProperties": _TEXT},
    authenticationRef=_closed("name", name=_TEXT),
)
KEDA_SPECS = {
    "ScaledObject": _closed(
        "scaleTargetRef",
        "triggers",
        scaleTargetRef=_closed("name", name=_TEXT),
        minReplicaCount=_INTEGER,
        maxReplicaCount=_INTEGER,
        pollingInterval=_INTEGER,
        cooldownPeriod=_INTEGER,
        advanced=_closed(
            horizontalPodAutoscalerConfig=_closed(
                behavior=_closed(scaleUp=_SCALING, scaleDown=_SCALING)
            )
        ),
        triggers=_many(_TRIGGER),
    ),
    "TriggerAuthentication": _closed(
        secretTargetRef=_many(
            _closed("parameter", "name", "key", parameter=_TEXT, name=_TEXT, key=_TEXT)
        )
    ),
}


def read(path: Path) -> list[dict[str, Any]]:
    return [dict(item) for item in yaml.safe_load_all(path.read_text(encoding="utf-8"))]


def base() -> list[dict[str, Any]]:
    names = read(K8S / "base" / "kustomization.yaml")[0]["resources"]
    folder = K8S / "base"
    assert {*names, "kustomization.yaml"} == {path.name for path in folder.iterdir()}
    return [item for name in names for item in read(folder / name)]


def autoscaling() -> list[dict[str, Any]]:
    return read(K8S / "autoscaling" / "scaledobject.yaml")


def find(items: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    (found,) = [i for i in items if (i["kind"], i["metadata"]["name"]) == (kind, name)]
    return found


def container(name: str) -> dict[str, Any]:
    (only,) = find(base(), "Deployment", name)["spec"]["template"]["spec"]["containers"]
    return dict(only)


def setting(name: str, variable: str) -> float:
    environment = {item["name"]: item.get("value") for item in container(name)["env"]}
    field = Settings.model_fields[variable.removeprefix("RPIAE_").lower()]
    return float(environment.get(variable) or field.default)


def check(item: dict[str, Any]) -> None:
    """Against the schemas of its kind; what they do not know is refused."""
    if item["kind"] in KEDA_SPECS:
        assert item["apiVersion"] == "keda.sh/v1alpha1"
        jsonschema.validate(item["spec"], KEDA_SPECS[item["kind"]])
        return
    for version in VERSIONS:
        kubernetes_validate.validate(item, version, strict=True)


def references(node: Any) -> Iterator[tuple[str, str]]:
    """Name and key of every secret that something in `node` takes."""
    if isinstance(node, list):
        for item in node:
            yield from references(item)
    elif isinstance(node, dict):
        if "secretKeyRef" in node:
            yield node["secretKeyRef"]["name"], node["secretKeyRef"]["key"]
        for item in node.get("secretTargetRef", ()):
            yield item["name"], item["key"]
        for item in node.values():
            yield from references(item)


@pytest.mark.parametrize("item", [*base(), *autoscaling()], ids=lambda i: i["kind"])
def test_manifests_fit_their_schemas(item: dict[str, Any]) -> None:
    check(item)


def test_a_misspelt_field_is_found() -> None:
    item = find(base(), "Deployment", "worker")
    item["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        check(item)
    scaled = find(autoscaling(), "ScaledObject", "worker")
    scaled["spec"]["triggers"][0]["metadata"]["streamLength"] = 8
    with pytest.raises(jsonschema.ValidationError):
        check(scaled)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_render_to_valid_manifests(overlay: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not on PATH")
    command = [kubectl, "kustomize", str(K8S / "overlays" / overlay)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    items = list(yaml.safe_load_all(finished.stdout))
    for item in items:
        check(item)
        assert item["kind"] == "Namespace" or item["metadata"]["namespace"] == "rpiae"
    for name in ("gateway", "worker"):
        spec = find(items, "Deployment", name)["spec"]["template"]["spec"]
        image, _, tag = spec["containers"][0]["image"].partition(":")
        assert image.startswith(f"rpiae-{name}")
        assert tag
        gpus = spec["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0)
        assert gpus == (1 if (name, overlay) == ("worker", "gpu") else 0)
    kinds = {
        trigger["type"] for trigger in find(items, "ScaledObject", "worker")["spec"]["triggers"]
    }
    assert kinds == {"redis-sentinel-streams" if overlay == "gpu" else "redis-streams"}


def test_the_autoscaler_reads_every_stream_of_the_queue() -> None:
    queue = JobQueue(Redis(), name=Settings.model_fields["queue_name"].default)
    triggers = find(autoscaling(), "ScaledObject", "worker")["spec"]["triggers"]
    streams = [trigger["metadata"]["stream"] for trigger in triggers]
    assert streams == [queue._key("stream", priority) for priority in PRIORITIES]
    # With a group KEDA would count what is pending, and nothing that waits.
    assert all("consumerGroup" not in trigger["metadata"] for trigger in triggers)


def test_without_a_worker_requests_wait_for_one() -> None:
    """deploy/k8s/scale-to-zero: where nobody works, a job must stay until somebody does."""
    (component,) = read(K8S / "scale-to-zero" / "kustomization.yaml")
    patches = {
        (patch["target"]["kind"], patch["target"]["name"]): yaml.safe_load(patch["patch"])
        for patch in component["patches"]
    }
    (replicas,) = patches["ScaledObject", "worker"]
    assert (replicas["path"], replicas["value"]) == ("/spec/minReplicaCount", 0)
    assert find(autoscaling(), "ScaledObject", "worker")["spec"]["minReplicaCount"] == 1
    (wait,) = patches["Deployment", "gateway"]
    assert wait["path"] == "/spec/template/spec/containers/0/env/-"
    assert wait["value"]["name"] == "RPIAE_WAIT_FOR_WORKER_S"
    assert 0 < float(wait["value"]["value"]) < setting("gateway", "RPIAE_REQUEST_TIMEOUT_S")


def test_scale_to_zero_renders(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not on PATH")
    shutil.copytree(K8S, tmp_path / "k8s")
    overlay = tmp_path / "k8s" / "overlays" / "cpu" / "kustomization.yaml"
    text = overlay.read_text(encoding="utf-8")
    both = "  - ../../autoscaling\n  - ../../scale-to-zero\n"
    overlay.write_text(text.replace("  - ../../autoscaling\n", both), encoding="utf-8")
    command = [kubectl, "kustomize", str(overlay.parent)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    items = list(yaml.safe_load_all(finished.stdout))
    assert find(items, "ScaledObject", "worker")["spec"]["minReplicaCount"] == 0
    (gateway,) = find(items, "Deployment", "gateway")["spec"]["template"]["spec"]["containers"]
    assert {"name": "RPIAE_WAIT_FOR_WORKER_S", "value": "100"} in gateway["env"]
    for item in items:
        check(item)


@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_there_is_time_to_drain(name: str) -> None:
    spec = find(base(), "Deployment", name)["spec"]["template"]["spec"]
    stop = container(name).get("lifecycle", {}).get("preStop", {"sleep": {"seconds": 0}})
    drain_s = setting(name, "RPIAE_DRAIN_TIMEOUT_S")
    assert drain_s > setting("gateway", "RPIAE_REQUEST_TIMEOUT_S")
    assert spec["terminationGracePeriodSeconds"] >= drain_s + stop["sleep"]["seconds"] + 10


@pytest.mark.parametrize("name", ["gateway", "worker"])
def test_pods_are_hardened(name: str) -> None:
    spec = find(base(), "Deployment", name)["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"cpu", "memory"} == set(container(name)["resources"]["requests"])


def test_probes_ask_what_exists() -> None:
    probes = {
        name: {kind: probe["httpGet"] for kind, probe in container(name).items() if "Probe" in kind}
        for name in ("gateway", "worker")
    }
    assert {kind: get["path"] for kind, get in probes["gateway"].items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    assert {get["path"] for get in probes["worker"].values()} == {"/metrics"}
    for name, asked in probes.items():
        declared = {port["name"] for port in container(name)["ports"]}
        assert {get["port"] for get in asked.values()} <= declared


def test_secrets_are_only_referred_to() -> None:
    items = [*base(), *autoscaling()]
    assert all(item["kind"] != "Secret" for item in items)
    taken = set(references(items))
    assert taken
    assert all(key in SECRETS[name] for name, key in taken)
    readme = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    for name, keys in SECRETS.items():
        assert f"create secret generic {name} " in readme
        assert all(f"{key}=" in readme for key in keys)


def test_selectors_find_their_pods() -> None:
    items = base()
    labels = {
        name: find(items, "Deployment", name)["spec"]["template"]["metadata"]["labels"]
        for name in ("gateway", "worker")
    }
    for item in items:
        spec = item.get("spec", {})
        selector = {
            "Deployment": lambda spec: spec["selector"]["matchLabels"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "Service": lambda spec: spec["selector"],
        }.get(item["kind"])
        if selector is not None:
            wanted = selector(spec).items()
            assert any(wanted <= found.items() for found in labels.values()), item["metadata"]
