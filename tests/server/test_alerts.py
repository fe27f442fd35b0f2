"""Test the alerting rules with Prometheus's own tool, where it is installed."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..conftest import ROOT

PROMTOOL = shutil.which("promtool")
RULES = ROOT / "deploy" / "alerts.yaml"
pytestmark = [pytest.mark.long, pytest.mark.skipif(PROMTOOL is None, reason="promtool is missing: sudo apt install prometheus")]

# What is scraped each minute, and the alerts that fire after twenty.
CASES: dict[str, dict[str, str]] = {
    "AcaSessionsDown": {'up{job="aca-sessions"}': "0x100"},
    "AcaSessionsNearlyFull": {"aca_sessions_server_sessions": "95x100", "aca_sessions_server_sessions_limit": "100x100"},
    "AcaSessionsRefused": {'aca_sessions_server_refusals_total{error_type="SessionsCountExceedsLimit"}': "0+1x100"},
    "AcaSessionsMemoryNearlyFull": {
        "aca_sessions_server_memory_usage_bytes": "95x100",
        "aca_sessions_server_memory_limit_bytes": "100x100",
    },
    "AcaSessionsDescriptorsNearlyGone": {
        "aca_sessions_server_descriptors_usage": "75x100",
        "aca_sessions_server_descriptors_limit": "100x100",
    },
    "AcaSessionsLoseVariables": {'aca_sessions_server_losses_total{reason="memory"}': "0+1x100"},
    "AcaSessionsEvicted": {'aca_sessions_server_losses_total{reason="evicted"}': "0+1x100"},
    "AcaSessionsForkServerDied": {"aca_sessions_server_fork_server_deaths_total": "0x80 1x20"},
    "AcaSessionsStartSlowly": {
        'aca_sessions_server_start_duration_seconds_bucket{le="5"}': "0+9x100",
        'aca_sessions_server_start_duration_seconds_bucket{le="2.5"}': "0+1x100",
        'aca_sessions_server_start_duration_seconds_bucket{le="+Inf"}': "0+9x100",
    },
    "AcaSessionsWrongKeys": {'aca_sessions_server_refusals_total{error_type="Unauthorized"}': "0+120x100"},
    "AcaSessionsKeyFileUnusable": {"aca_sessions_server_key_file_unusable": "1x100"},
    "AcaSessionsAuditLosesEvents": {"aca_sessions_server_audit_lost_total": "0+1x100"},
    "AcaSessionsDrainForLong": {"aca_sessions_server_draining": "1x100"},
}
HEALTHY = {
    'up{job="aca-sessions"}': "1x100",
    "aca_sessions_server_sessions": "50x100",
    "aca_sessions_server_sessions_limit": "100x100",
    'aca_sessions_server_refusals_total{error_type="SessionsCountExceedsLimit"}': "0x100",
    'aca_sessions_server_losses_total{reason="expired"}': "0+100x100",
    "aca_sessions_server_audit_lost_total": "0x100",
    "aca_sessions_server_fork_server_deaths_total": "1x100",
    "aca_sessions_server_key_file_unusable": "0x100",
    "aca_sessions_server_draining": "0x100",
}


def firing(series: dict[str, str], alert: str, tmp_path: Path) -> bool:
    """Return whether an alert fires after 90 minutes of these series: then the test of promtool fails, which expects none."""
    inputs = [{"series": name, "values": values} for name, values in series.items()]
    case: dict[str, Any] = {"interval": "1m", "input_series": inputs}
    case["alert_rule_test"] = [{"eval_time": "90m", "alertname": alert, "exp_alerts": []}]
    file = tmp_path / "case.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [case]}))
    run = subprocess.run([str(PROMTOOL), "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert run.returncode == 0 or "got:" in run.stdout + run.stderr, run.stderr
    return run.returncode != 0


def test_promtool_accepts_the_rules() -> None:
    subprocess.run([str(PROMTOOL), "check", "rules", str(RULES)], check=True)
    assert [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]] == [*CASES]


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_for_its_problem_and_not_for_a_healthy_server(alert: str, tmp_path: Path) -> None:
    assert firing(CASES[alert], alert, tmp_path)
    assert not firing(HEALTHY, alert, tmp_path)
