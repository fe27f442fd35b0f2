"""A plugin of pytest for the tests of the OpenAI Agents SDK: they get sandboxes of ours in place of the SDK's own.

Only tests that create a client run.
"""

import inspect

import pytest

from aca_sessions.integrations.openai_agents import SessionSandboxClient

_CLIENTS = ("UnixLocalSandboxClient", "FilesystemTestSandboxClient")
_HOST = "looks into the workspace as a folder of the host"
_OWN = "tests what the SDK does on the host: accounts, mounts, and its type of state"
UNFIT = {
    "test_sandbox_memory_flush_parent_cancellation_stops_worker": "waits for one second only, which a busy machine takes",
    "test_phase_two_enforces_configured_turn_limit": _HOST,
    "test_phase_two_selection_tracks_added_retained_and_removed_rollouts": _HOST,
    "test_sandbox_agent_without_memory_capability_skips_memory_generation": _HOST,
    "test_sandbox_memory_caps_phase_two_selection_and_surfaces_removed_rollouts": _HOST,
    "test_sandbox_memory_consolidation_turn_budget_on_session_close": _HOST,
    "test_sandbox_memory_fallback_does_not_mutate_run_config": _HOST,
    "test_sandbox_memory_groups_segments_by_sdk_session_until_close": _HOST,
    "test_sandbox_memory_rollout_payload_uses_validated_rollout_id": _HOST,
    "test_sandbox_memory_runs_phase_one_and_phase_two_on_session_close": _HOST,
    "test_sandbox_memory_supports_multiple_generating_layouts_in_one_session": _HOST,
    "test_sandbox_memory_uses_conversation_id_when_sdk_session_is_absent": _HOST,
    "test_sandbox_memory_uses_custom_layout": _HOST,
    "test_sandbox_memory_uses_group_id_when_sdk_session_is_absent": _HOST,
    "test_sandbox_memory_uses_per_run_conversation_when_no_conversation_id": _HOST,
    "test_sandbox_memory_writes_rollouts_and_memory_files": _HOST,
    "test_wrapped_unix_local_helpers_reject_symlink_escape_paths": _HOST,
    "test_runner_persists_workspace_and_tool_choice_state_across_sandbox_resume": _OWN,
    "test_runner_rejects_unix_local_manifest_user_and_group_provisioning": _OWN,
    "test_runner_restores_all_sandbox_agents_from_run_state_across_handoffs": _OWN,
    "test_runner_restores_legacy_current_sandbox_payload_after_json_roundtrip": _OWN,
    "test_unix_local_client_delete_preserves_caller_owned_workspace_root": _OWN,
    "test_unix_local_client_delete_skips_rmtree_when_unmount_fails": _OWN,
    "test_unix_local_client_delete_unmounts_nested_mounts_deepest_first": _OWN,
    "test_unix_local_client_delete_unmounts_workspace_mounts_before_rmtree": _OWN,
    "test_unix_local_client_rewrites_default_manifest_root_to_temp_workspace": _OWN,
    "test_unix_local_exec_rejects_when_confinement_is_unavailable": _OWN,
    "test_unix_local_exec_runs_without_wrapper_on_linux": _OWN,
    "test_unix_local_runner_cleanup_preserves_resumed_caller_owned_workspace_root": _OWN,
    "test_unix_local_virtual_environment_grants_follow_client_path_inheritance": _OWN,
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop tests that create no client. Skip those that cannot run with ours."""
    others = [item for item in items if not any(f"{name}()" in inspect.getsource(item.function) for name in _CLIENTS)]
    items[:] = [item for item in items if item not in others]
    config.hook.pytest_deselected(items=others)
    for item in items:
        for name in _CLIENTS:
            if hasattr(item.module, name):
                setattr(item.module, name, SessionSandboxClient)
        if reason := UNFIT.get(item.originalname):
            item.add_marker(pytest.mark.skip(reason=reason))
