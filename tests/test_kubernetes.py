"""The Kubernetes settings, read by Flower's own executor, with a cluster that only takes notes."""

from typing import Any

import pytest
from flwr.supercore.constant import ExecutorType, TaskType
from flwr.supercore.superexec.executor.config import load_executor_config
from flwr.supercore.superexec.executor.factory import (
    _KUBERNETES_CONFIG_FIELD_MAP,
    _kubernetes_executor_config_from_mapping,
)
from flwr.supercore.superexec.executor.kubernetes_executor import KubernetesExecutor
from flwr.supercore.superexec.executor.types import ExecutionSpec, LaunchResultStatus

from compose_support import ROOT, read_compose

FILE = ROOT / "deploy/kubernetes-executor.yaml"


class Cluster:
    """Takes notes of what is made."""

    def __init__(self) -> None:
        self.pods: list[Any] = []
        self.secrets: list[Any] = []

    def create_namespaced_secret(self, namespace: str, body: Any) -> object:
        self.secrets.append((namespace, body))
        return body

    def create_namespaced_pod(self, namespace: str, body: Any) -> object:
        self.pods.append((namespace, body))
        return body

    def list_namespaced_pod(self, namespace: str, label_selector: str) -> dict[str, Any]:
        return {"items": [body for _, body in self.pods]}

    def list_namespaced_secret(self, namespace: str, label_selector: str) -> dict[str, Any]:
        return {"items": []}


@pytest.fixture
def config() -> dict[str, Any]:
    return load_executor_config(str(FILE), ExecutorType.KUBERNETES)


def test_flower_knows_every_key(config: dict[str, Any]) -> None:
    # Flower passes over what it does not know, without a word.
    assert set(config) <= {"namespace", "image", *_KUBERNETES_CONFIG_FIELD_MAP}


def test_a_message_becomes_one_pod_that_holds_the_shop_and_no_rights(
    config: dict[str, Any],
) -> None:
    cluster = Cluster()
    executor = KubernetesExecutor(
        client=cluster,  # type: ignore[arg-type]
        config=_kubernetes_executor_config_from_mapping(config),
    )
    tasks = {TaskType.CLIENT_APP}
    assert executor.get_eligible_capacity(tasks)[0] == tasks
    launched = executor.launch(
        ExecutionSpec(
            task_type=TaskType.CLIENT_APP,
            runtime_api_address="supernode:9094",
            token="token",
            insecure=False,
            root_certificates_path=None,
            runtime_dependency_install=False,
            parent_pid=None,
            suppress_output=False,
            task_id=7,
        )
    )
    assert launched.status == LaunchResultStatus.ACCEPTED
    (namespace, pod), (_, secret) = cluster.pods[0], cluster.secrets[0]
    assert namespace == "corner-shop"
    assert secret["stringData"]["token"] == "token"
    (container,) = pod["spec"]["containers"]
    assert container["command"] == ["flwr-clientapp"]
    assert "token" not in container["args"]
    mounted = {m["mountPath"]: bool(m.get("readOnly")) for m in container["volumeMounts"]}
    writable = {path for path, read_only in mounted.items() if not read_only}
    assert writable == {"/shop/ledger", "/shop/models", "/tmp"}
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert {m["name"] for m in container["volumeMounts"]} == volumes
    image = read_compose().services["shop-superexec"]["user"].partition(":")[0]
    assert pod["spec"]["securityContext"]["runAsUser"] == int(image)
    assert pod["spec"]["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    assert given["FEDTAIL_SHOP"] == "/shop/shop.toml"
    # One at a time: the pod that runs fills the budget.
    assert executor.get_eligible_capacity(tasks) == (set(), set())


def test_flower_keeps_no_warm_pods_for_a_shops_app(config: dict[str, Any]) -> None:
    """docs/scaling.md says so; should that change, it is worth having."""
    config |= {
        "warm-executor-owner": "corner",
        "active-pod-budget": 3,
        "warm-executor-pools": [{"task-type": TaskType.CLIENT_APP.value, "size": 1}],
    }
    with pytest.raises(ValueError, match="Warm executor pools support only"):
        _kubernetes_executor_config_from_mapping(config)
