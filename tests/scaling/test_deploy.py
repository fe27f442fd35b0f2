"""Test that each file under deploy/ is used by a test or marked as not run, and that references between them are valid."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from aca_sessions.cli.commands import build_parser

from ..conftest import ROOT
from .cluster import CONFIGURATION, NGINX, needs_nginx

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
Body = dict[str, Any]


def bodies(name: str) -> list[Body]:
    """Return the objects of a file."""
    found = [body for body in yaml.safe_load_all((KUBERNETES / name).read_text()) if body]
    return [item for body in found for item in body.get("items", [body])]


def named(objects: list[Body], kind: str) -> dict[str, Body]:
    return {body["metadata"]["name"]: body for body in objects if body["kind"] == kind}


def pods(objects: list[Body]) -> Iterator[tuple[dict[str, str], Body]]:
    """Return the labels and the specification of each pod. A StatefulSet has one for each replica, labelled as it labels them."""
    for body in objects:
        template = body["spec"].get("template") or body["spec"].get("podTemplate")
        if template is None:
            continue
        labels = template["metadata"]["labels"]
        if body["kind"] == "StatefulSet":
            first = body["spec"]["ordinals"]["start"]
            for number in range(first, first + body["spec"]["replicas"]):
                yield labels | {"statefulset.kubernetes.io/pod-name": f"{body['metadata']['name']}-{number}"}, template["spec"]
        else:
            yield labels, template["spec"]


@pytest.fixture(params=["servers.yaml", "agent-sandbox.yaml"])
def servers(request: pytest.FixtureRequest) -> list[Body]:
    return bodies(request.param)


@pytest.mark.parametrize("file", [file for file in DEPLOY.rglob("*") if file.is_file()], ids=lambda file: file.name)
def test_each_file_is_used_by_a_test_or_marked_as_not_run(file: Path) -> None:
    head = "\n".join(file.read_text().splitlines()[:6])
    tests = "".join(test.read_text() for test in (ROOT / "tests").rglob("*.py") if test != Path(__file__))
    assert file.name in tests or "not run" in head.lower()


def test_every_service_has_its_pod_and_its_port(servers: list[Body]) -> None:
    made = [*pods(servers), *pods(bodies("proxy.yaml"))]
    for name, service in named([*servers, *bodies("proxy.yaml")], "Service").items():
        selected = [spec for labels, spec in made if service["spec"]["selector"].items() <= labels.items()]
        assert len(selected) == {"aca-sessions": 3, "aca-sessions-proxy": 1}.get(name, 1), name
        for port in service["spec"]["ports"]:
            opened = {opened["name"]: opened["containerPort"] for opened in selected[0]["containers"][0]["ports"]}
            assert opened[port["targetPort"]] == port["port"]


def test_selectors_volumes_and_probes_name_existing_objects(servers: list[Body]) -> None:
    every = [*servers, *bodies("proxy.yaml"), *bodies("networkpolicy.yaml")]
    labels = [labels for labels, _ in pods(every)]
    for body in every:
        selector = body["spec"].get("podSelector") or body["spec"].get("selector") or {}
        wanted = selector.get("matchLabels", selector)
        assert any(wanted.items() <= one.items() for one in labels), body["metadata"]["name"]
    for _, spec in pods(every):
        container = spec["containers"][0]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in spec["volumes"]}
        claims = {volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume}
        assert claims <= {*named(bodies("store.yaml"), "PersistentVolumeClaim")}
        probes = [probe for name, probe in container.items() if name.endswith("Probe")]
        assert {probe.get("httpGet", probe.get("tcpSocket"))["port"] for probe in probes} == {container["ports"][0]["name"]}


def test_the_network_policy_lets_the_proxy_in_and_servers_reach_nothing() -> None:
    policies = named(bodies("networkpolicy.yaml"), "NetworkPolicy")
    (rule,) = policies["aca-sessions"]["spec"]["ingress"]
    (proxy,) = named(bodies("proxy.yaml"), "Deployment").values()
    assert rule["from"][0]["podSelector"]["matchLabels"] == proxy["spec"]["template"]["metadata"]["labels"]
    assert policies["aca-sessions"]["spec"]["egress"] == []


def test_a_server_starts_with_valid_options_and_is_killed_only_after_it_has_drained(servers: list[Body]) -> None:
    for _, spec in pods(servers):
        options = build_parser().parse_args(spec["containers"][0]["args"])
        assert any(options.store.startswith(f"file://{mount['mountPath']}/") for mount in spec["containers"][0]["volumeMounts"])
        assert options.drain_seconds < spec["terminationGracePeriodSeconds"]
        assert options.port == spec["containers"][0]["ports"][0]["containerPort"]
        probes = {name: spec["containers"][0][f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
        assert probes == {"startup": "/readyz", "readiness": "/readyz", "liveness": "/livez"}  # only the last is 200 during a drain


def test_both_ways_to_run_servers_use_the_same_settings() -> None:
    ignored = {"topologySpreadConstraints"}
    first, second = (next(pods(bodies(name)))[1] for name in ("servers.yaml", "agent-sandbox.yaml"))
    assert {name: value for name, value in first.items() if name not in ignored} == second


def test_a_kustomization_names_existing_files() -> None:
    (kustomization,) = [yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())]
    assert all((KUBERNETES / name).is_file() for name in kustomization["resources"])


def test_the_ingress_has_the_limits_of_the_proxy_and_an_existing_service() -> None:
    (ingress,) = bodies("ingress.yaml")
    said = {name.rpartition("/")[2]: value for name, value in ingress["metadata"]["annotations"].items()}
    text = CONFIGURATION.read_text()
    assert (said["upstream-hash-by"], said["proxy-read-timeout"]) == ("$arg_identifier", "86400")
    assert f"client_max_body_size {said['proxy-body-size']};" in text
    assert f"proxy_next_upstream {said['proxy-next-upstream']};" in text
    assert "non_idempotent" not in said["proxy-next-upstream"]
    backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend["port"]["name"] in {port["name"] for port in named(bodies("servers.yaml"), "Service")[backend["name"]]["spec"]["ports"]}


@needs_nginx
def test_the_command_for_the_cluster_configuration_makes_a_valid_one(servers: list[Body], tmp_path: Path) -> None:
    line = re.search(r"^#   (sed '.*' deploy/nginx\.conf) \|", (KUBERNETES / "kustomization.yaml").read_text(), re.MULTILINE)[1]
    text = subprocess.run(["sh", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(re.findall(r"server ([\w-]+):8080 ", text)) == {name for name in named(servers, "Service") if name[-1].isdigit()}
    assert "listen 8080;" in text
    (tmp_path / "nginx.conf").write_text(re.sub(r"server aca-sessions-(\d):8080", r"server 127.0.0.\1:8080", text))
    checked = subprocess.run([str(NGINX), "-t", "-e", "stderr", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")], check=False)
    assert checked.returncode == 0
