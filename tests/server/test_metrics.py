"""Test `serve --metrics` with Prometheus's own parser, and the dashboard that uses the metrics."""

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from aca_sessions import Network, Settings, open_pool
from aca_sessions.hosting import Hosting

from ..cli.test_cli import Server
from ..conftest import ROOT, aca_sessions

pytestmark = pytest.mark.slow

DASHBOARD = json.loads((ROOT / "deploy" / "dashboard.json").read_text())
LABELS = {"start", "outcome", "state", "reason", "error_type", "le", "decision", "direction"}
VERSION = {"api-version": "2025-10-02-preview"}
Numbers = dict[str, float]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    options = ("--max-sessions", "2", "--session-rules", "--metrics", "--metrics-key", "scrape")
    with Server("--port", "0", "--api-key", "key", *options) as running:
        # An instrument has no series before its first event, so a session runs a cell first.
        aca_sessions("run", "--endpoint", running.endpoint, "1", env=os.environ | {"ACASessions__ApiKey": "key"})
        yield running


def scraped(server: Server) -> str:
    answer = httpx.get(f"{server.endpoint}/metrics", headers={"authorization": "Bearer scrape"}, timeout=120)
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return answer.text


def numbers(server: Server) -> Numbers:
    """Return sums over all labels, and for each label value as well."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(scraped(server)):
        for sample in family.samples:
            name = sample.name.removeprefix("aca_sessions_server_")
            found[name] += sample.value
            for label in LABELS & sample.labels.keys():
                found[f"{name} {sample.labels[label]}"] += sample.value
    return found


async def test_sessions_are_counted(server: Server) -> None:
    before = numbers(server)
    async with open_pool(Settings(Endpoint=server.endpoint, ApiKey="key")) as pool, pool.session("mine") as session:
        await session.run("x = 1")
        await session.run("while True: pass", timeout=0.1)
        await session.run("import os; os._exit(1)")
        await session.run("raise TimeoutError('of its own')")
        await session.run("bytearray(1 << 20)")
        async with asyncio.timeout(120):
            while numbers(server)["memory_usage_bytes"] < 1 << 20:  # without control groups the memory is polled now and then
                await asyncio.sleep(0.1)
        now = numbers(server)
    grown = {name: now[name] - before[name] for name in now}
    assert grown["sessions"] == 1
    assert grown["execution_duration_seconds_count timed_out"] == 1
    assert grown["execution_duration_seconds_count succeeded"] == 2
    assert grown["execution_duration_seconds_count failed"] == 2
    assert grown["execution_duration_seconds_sum timed_out"] > 0.1
    assert (grown["losses_total exit"], grown["losses_total"]) == (1, 1)
    assert grown["start_duration_seconds_count"] == 2
    assert grown["start_duration_seconds_count cold"] >= 1
    assert now["active_executions"] == 0
    assert numbers(server)["sessions"] == before["sessions"]


async def test_what_sessions_do_on_the_network_is_counted(server: Server) -> None:
    before = numbers(server)
    reach = "import urllib.request\ntry: urllib.request.urlopen('http://other.test')\nexcept OSError as error: print(error)"
    async with (
        open_pool(Settings(Endpoint=server.endpoint, ApiKey="key")) as pool,
        pool.session("mine", network=Network.allow("a.test")) as session,
    ):
        assert (await session.run(reach)).stdout.startswith("HTTP Error 403: Forbidden, blocked by")
    now = numbers(server)
    grown = {name: now[name] - before[name] for name in now if name.startswith("network_")}
    assert (grown["network_requests_total refused"], grown["network_requests_total"]) == (1, 1)
    assert (grown["network_traffic_bytes_total sent"], grown["network_traffic_bytes_total received"]) == (0, 0)


def test_refusals_by_a_limit_are_counted(server: Server) -> None:
    before = numbers(server)
    with httpx.Client(base_url=server.endpoint, headers={"authorization": "Bearer key"}, timeout=120) as client:
        cell = {"codeInputType": "Inline", "executionType": "Asynchronous", "code": "import time; time.sleep(60)"}
        answers = [client.post("/executions", params=VERSION | {"identifier": name}, json=cell) for name in ("one", "two", "three")]
        while numbers(server)["active_executions"] < 2:
            time.sleep(0.02)
        assert numbers(server)["sessions"] == 2
        for name in ("one", "two"):
            client.delete("/session", params=VERSION | {"identifier": name})
    now = numbers(server)
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert now["refusals_total SessionsCountExceedsLimit"] - before["refusals_total SessionsCountExceedsLimit"] == 1


def test_limits_are_exported_beside_their_use(server: Server) -> None:
    now = numbers(server)
    assert (now["sessions_limit"], now["starting_limit"], now["draining"]) == (2, Hosting().max_starting, 0)
    assert now["starting_usage"] == 0
    assert 0 < now["descriptors_usage"] < now["descriptors_limit"]
    assert now["memory_usage_bytes"] < now["memory_limit_bytes"] < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    httpx.get(f"{server.endpoint}/files", headers={"authorization": "Bearer wrong"}, timeout=120)
    assert numbers(server)["refusals_total Unauthorized"] - now["refusals_total Unauthorized"] == 1


def test_the_target_is_named_as_the_environment_says_or_else_after_this_package(server: Server) -> None:
    assert '"aca-sessions"' in re.search(r"^target_info\{.*service_name=(\S+?)[,}].*$", scraped(server), re.MULTILINE)[1]
    code = "from aca_sessions.cli.serving import prometheus; print(prometheus()().decode())"
    environment = os.environ | {"OTEL_SERVICE_NAME": "notebooks"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert re.search(r'^target_info\{.*service_name="notebooks".*\} 1\.0$', run.stdout, re.MULTILINE)


def test_every_label_has_a_fixed_set_of_values(server: Server) -> None:
    aca_sessions("run", "--endpoint", server.endpoint, "--session", "the-secret", "1", env=os.environ | {"ACASessions__ApiKey": "key"})
    text = scraped(server)
    ours = [family for family in text_string_to_metric_families(text) if family.name.startswith("aca_sessions")]
    assert "the-secret" not in text
    assert {label for family in ours for sample in family.samples for label in sample.labels if not label.startswith("otel_")} <= LABELS


def test_the_dashboard_uses_only_exported_metrics(server: Server) -> None:
    exported = {sample.name for family in text_string_to_metric_families(scraped(server)) for sample in family.samples}
    queries = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    named = {name for query in queries for name in re.findall(r"aca_sessions_\w+", query)}
    assert named <= exported
    assert {label for query in queries for labels in re.findall(r"by \((.*?)\)", query) for label in re.split(r",\s*", labels)} <= LABELS
    assert "not run in Grafana" in DASHBOARD["description"]


def test_the_alerts_use_only_exported_metrics_and_labels(server: Server) -> None:
    families = [*text_string_to_metric_families(scraped(server))]
    exported = {sample.name for family in families for sample in family.samples}
    rules = [rule["expr"] for group in yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
    named = {name for rule in rules for name in re.findall(r"aca_sessions_\w+", rule)}
    assert len(named) > 10
    # An instrument with labels has no series before its first event, except for the labels that are counted from the start.
    assert {name for name in named if not name.startswith("aca_sessions_server_start_duration")} <= exported
    values = {value for family in families for sample in family.samples for value in sample.labels.values()}
    assert {one for rule in rules for found in re.findall(r'(?:error_type|reason)=~?"([^"]+)"', rule) for one in found.split("|")} <= values


def test_the_dashboard_shows_every_metric_of_a_server() -> None:
    page = set(re.findall(r"^\| `(aca_sessions\.server\.[\w.]+)`", (ROOT / "docs" / "guides" / "operating.md").read_text(), re.MULTILINE))
    shown = json.dumps(DASHBOARD["panels"])
    assert len(page) == 19
    assert [name for name in page if name.replace(".", "_") not in shown] == []


@pytest.mark.long
def test_a_server_without_metrics_has_no_such_path() -> None:
    with Server("--port", "0", "--api-key", "key") as plain:
        assert httpx.get(f"{plain.endpoint}/metrics", headers={"authorization": "Bearer key"}).status_code == 404


def serve_after(first: str) -> "subprocess.CompletedProcess[str]":
    code = f"{first}; from aca_sessions.cli.main import main; main(['serve', '--metrics', '--port', '0'])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)


def test_a_meter_provider_of_another_library_is_not_replaced() -> None:
    configured = (
        "from opentelemetry import metrics; from opentelemetry.sdk import metrics as sdk; metrics.set_meter_provider(sdk.MeterProvider())"
    )
    run = serve_after(configured)
    assert (run.returncode, "leave --metrics out" in run.stderr) == (2, True)


@pytest.mark.long
def test_a_missing_library_is_named() -> None:
    run = serve_after("import sys; sys.modules['prometheus_client'] = None")
    assert (run.returncode, "pip install 'aca-sessions-core[metrics]'" in run.stderr) == (2, True)
