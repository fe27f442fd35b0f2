"""Test that SECURITY.md and the tests agree."""

import ast
import re
from pathlib import Path

import pytest

from ..conftest import ROOT

_ROW = re.compile(r"^\| (.+?) \| .+? \| `(tests/hostile/[\w.]+::\w+)` \|$", re.MULTILINE)
_OWN = Path(__file__).name


def rows() -> dict[str, str]:
    return {test: claim for claim, test in _ROW.findall((ROOT / "SECURITY.md").read_text())}


def test_each_claim_has_its_test_and_each_test_its_claim() -> None:
    tests = {}
    for file in sorted(path for path in (ROOT / "tests" / "hostile").glob("test_*.py") if path.name != _OWN):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                tests[f"tests/hostile/{file.name}::{node.name}"] = " ".join((ast.get_docstring(node) or "").split())
    assert rows() == tests
    assert len(tests) > 30


# What takes so long that `make test-long` alone tests it.
LONG = {
    "test_a_client_that_makes_no_progress_is_disconnected",
    "test_a_display_in_a_notebook_runs_no_script_and_loads_nothing",
    "test_a_folder_swapped_for_a_link_gives_access_to_no_folder_of_the_host",
    "test_a_host_write_that_does_not_fit_is_refused_and_ends_no_session",
    "test_a_repeated_call_is_made_once",
    "test_a_secret_that_the_host_adds_is_found_nowhere",
    "test_a_session_changes_no_dependency_of_its_owner",
    "test_a_session_passes_no_object_that_its_data_does_not_hold",
    "test_a_session_that_floods_its_proxy_goes_on",
    "test_a_small_wheel_does_not_fill_the_disk",
    "test_a_wheel_writes_nothing_outside_its_folder",
    "test_an_endless_response_ends_at_the_limit_and_an_interrupt_ends_it",
    "test_computing_of_a_cell_counts_while_it_waits_for_the_host",
    "test_computing_of_a_cell_in_a_thread_counts_while_it_waits_for_the_host",
    "test_files_count_to_the_memory_of_all_sessions",
    "test_files_take_no_more_memory_than_the_session_may",
    "test_markdown_and_formulas_reach_neither_the_page_nor_the_network",
    "test_memory_of_sockets_belongs_to_the_session",
    "test_no_code_of_a_package_runs_on_the_host",
    "test_processes_that_make_files_without_end_delay_no_rollback",
    "test_scripts_that_a_person_lets_run_reach_nothing_of_the_page",
    "test_shared_packages_can_be_neither_changed_nor_listed",
    "test_tenants_have_no_address_layout_in_common",
    "test_the_key_is_in_no_command_line",
    "test_the_key_is_kept_for_its_tab_only",
    "test_the_page_lays_out_a_flood_of_colours",
    "test_the_password_of_an_index_is_not_disclosed",
    "test_the_searches_find_what_is_there",
    "test_uncounted_memory_is_reported",
    "test_undoing_a_fork_bomb_does_not_block_the_hosts_event_loop",
    "test_unread_answers_together_take_bounded_memory",
    "test_what_code_displays_reaches_neither_the_page_nor_the_network",
    "test_wheels_that_are_too_large_together_are_not_installed",
}


def test_every_other_claim_is_tested_by_make_test(request: pytest.FixtureRequest) -> None:
    collected = {item.nodeid.partition("[")[0] for item in request.session.items}
    expected = {test.partition("::")[0] for test in rows() if test.partition("::")[2] not in LONG}
    if not expected <= {name.partition("::")[0] for name in collected}:
        pytest.skip("only a run of all of tests/hostile shows which of its tests are run")
    assert {test.partition("::")[2] for test in rows().keys() - collected} <= LONG
