from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aca_sessions.ledger import CallerPosition, Ledger, state_between, summarize
from aca_sessions.models import CodeError, CodeExecutionResult, Entry, State

LOST = {"variables": "lost", "processes": "ended"}


def ledger_of(*entries: tuple[str, dict]) -> Ledger:
    ledger = Ledger()
    for kind, effects in entries:
        ledger.append(kind, **effects)
    return ledger


def died(cause: str = "exit") -> tuple[str, dict]:
    return "died", {"cause": cause, **LOST}


def rolled_back(to: int, *, files: str = "rolled_back", cause: str | None = None, checkpoint: str | None = None) -> tuple[str, dict]:
    return "rolled_back", {
        "variables": "rolled_back",
        "files": files,
        "processes": "ended",
        "to": to,
        "cause": cause,
        "checkpoint": checkpoint,
    }


def test_a_start_and_a_checkpoint_are_not_reported() -> None:
    ledger = ledger_of(("started", {}), ("checkpoint", {"checkpoint": "1"}))
    assert ledger.between(0, ledger.position) == State()


def test_a_death_loses_variables_and_keeps_files() -> None:
    assert ledger_of(died("memory")).between(0, 1) == State("lost", "kept", "ended", "memory")


def test_what_happened_before_the_position_is_not_reported() -> None:
    assert ledger_of(died(), ("started", {})).between(1, 2) == State()


def test_a_rollback_to_what_the_caller_knows_undoes_a_loss() -> None:
    ledger = ledger_of(("checkpoint", {}), died(), rolled_back(1, files="kept", cause="exit, to the last checkpoint", checkpoint="1"))
    assert ledger.between(1, 3) == State("rolled_back", "kept", "ended", "exit, to the last checkpoint", "1")


def test_a_rollback_to_after_a_loss_restores_the_loss() -> None:
    ledger = ledger_of(died(), ("started", {}), ("checkpoint", {}), rolled_back(3))
    assert ledger.between(0, 4) == State("lost", "rolled_back", "ended", "exit")


def test_a_rollback_by_another_caller_is_not_hidden_by_a_later_failed_cell() -> None:
    ledger = ledger_of(
        ("checkpoint", {}), ("checkpoint", {}), rolled_back(1, cause="rollback", checkpoint="1"), ("checkpoint", {}), rolled_back(4)
    )
    assert ledger.between(2, 5) == State("rolled_back", "rolled_back", "ended", "rollback", "1")


def test_files_can_be_lost_while_variables_are_kept() -> None:
    state = ledger_of(("ended", {"files": "lost", "cause": "disk"})).between(0, 1)
    assert (state.variables, state.files, str(state)) == ("kept", "lost", "lost: disk")
    assert state.consequence == "variables are kept, files from before are gone"


def test_the_reason_is_that_of_the_variables_if_both_parts_changed() -> None:
    ledger = ledger_of(("reset", {"cause": "reset", **LOST}), ("rolled_back", {"files": "rolled_back", "to": 0}))
    assert ledger.between(0, 2) == State("lost", "rolled_back", "ended", "reset")


def test_a_callers_own_reset_is_not_reported_to_it_and_makes_earlier_losses_irrelevant() -> None:
    ledger = ledger_of(died(), ("reset", {"cause": "reset", **LOST}))
    assert state_between(ledger.record(0, 2, 2).entries, 0, 2, requested={2}) == State()


def test_a_callers_own_reset_does_not_hide_that_files_were_lost() -> None:
    ledger = ledger_of(("ended", {"cause": "crash", "variables": "lost", "files": "lost"}), ("reset", {"cause": "reset", **LOST}))
    state = state_between(ledger.record(0, 2, 2).entries, 0, 2, requested={2})
    assert (state.variables, state.files) == ("kept", "lost")


def test_the_reason_after_a_callers_own_reset_is_that_of_the_files() -> None:
    ledger = ledger_of(rolled_back(0, cause="rollback", checkpoint="1"), died(), ("reset", {"cause": "reset", **LOST}))
    state = state_between(ledger.record(0, 3, 3).entries, 0, 3, requested={3})
    assert (state.variables, state.files, state.reason) == ("kept", "rolled_back", "rollback")


def test_a_record_starts_no_later_than_its_execution() -> None:
    ledger = ledger_of(died(), ("started", {}))
    assert [entry.position for entry in ledger.record(2, 0, 2).entries] == [1, 2]


def test_a_position_of_another_ledger_means_a_lost_session() -> None:
    state, record = ledger_of(("started", {})).state_and_record("0123:7", 0, 1)
    assert (state, record.since) == (State("lost", "lost", "ended", "expired"), 0)


@pytest.mark.parametrize("text", ["", ":", "x", "x:", ":1", "{id}:-1", "{id}:1e3", "{id}:" + "9" * 400])
def test_a_position_that_cannot_be_parsed_belongs_to_another_ledger(text: str) -> None:
    ledger = ledger_of(("started", {}))
    assert ledger.state_and_record(text.format(id=ledger.id), 0, 1)[0].kind == "lost"


EFFECTS = st.sampled_from([("started", {}), died("exit"), died("memory"), ("reset", {"cause": "reset", **LOST})])


@given(st.lists(EFFECTS, min_size=1, max_size=300), st.integers(1, 100))
def test_a_summary_has_the_effect_of_its_entries(entries: list, most: int) -> None:
    whole = [Entry(position, kind, **effects) for position, (kind, effects) in enumerate(entries, 1)]
    short = summarize(whole, most)
    assert len(short) <= most + 1
    assert state_between(short, 0, len(whole)) == state_between(whole, 0, len(whole))


def test_a_ledger_is_bounded() -> None:
    ledger = Ledger()
    for _ in range(5000):
        ledger.append("died", cause="exit", **LOST)
    assert len(ledger.record(0, 0, 5000).entries) <= 101
    assert ledger.between(0, 5000) == State("lost", "kept", "ended", "exit")


def result_at(ledger: Ledger, since: int, start: int) -> CodeExecutionResult:
    return CodeExecutionResult(record=ledger.record(since, start, ledger.position))


def test_a_loss_is_reported_until_a_result_was_delivered() -> None:
    ledger, caller = ledger_of(("started", {})), CallerPosition()
    caller.deliver(result_at(ledger, 0, 1))
    ledger.append("died", cause="exit", **LOST)
    peeking = replace(caller)  # a cell of the client, or a call that was cancelled
    assert str(peeking.deliver(result_at(ledger, 1, 2)).state) == "lost: exit"
    assert str(caller.deliver(result_at(ledger, 1, 2)).state) == "lost: exit"
    assert str(caller.deliver(result_at(ledger, 2, 2)).state) == "kept"


def test_a_delivery_that_failed_is_repeated() -> None:
    ledger, caller = ledger_of(("started", {})), CallerPosition()
    caller.deliver(result_at(ledger, 0, 1))
    ledger.append("died", cause="exit", **LOST)
    told = caller.deliver(result_at(ledger, 1, 2))
    assert told.record is not None
    caller.undo_delivery(told.record)
    assert str(caller.deliver(result_at(ledger, 1, 2)).state) == "lost: exit"


def test_an_older_result_that_arrives_late_reports_its_own_time_only() -> None:
    ledger, caller = ledger_of(("started", {})), CallerPosition()
    early = result_at(ledger, 0, 1)
    ledger.append("died", cause="exit", **LOST)
    caller.deliver(result_at(ledger, 0, 2))
    assert str(caller.deliver(early).state) == "kept"
    assert str(caller.deliver(result_at(ledger, 2, 2)).state) == "kept"


def test_a_result_that_arrives_late_still_reports_what_its_own_cell_lost() -> None:
    ledger, caller = ledger_of(("started", {})), CallerPosition()
    caller.deliver(result_at(ledger, 0, 1))
    ledger.append("died", cause="exit", **LOST)
    died = result_at(ledger, 1, 1)
    assert str(caller.deliver(result_at(ledger, 1, 2)).state) == "lost: exit"
    assert str(caller.deliver(died).state) == "lost: exit"


def test_a_reset_while_a_cell_ran_is_reported_in_its_result() -> None:
    ledger, caller = ledger_of(("started", {})), CallerPosition()
    caller.deliver(result_at(ledger, 0, 1))
    entry = ledger.append("reset", cause="reset", **LOST)
    caller.add_requested(ledger.id, entry.position)
    assert str(caller.deliver(result_at(ledger, 1, 1)).state) == "lost: reset"


def test_the_text_of_an_error_follows_the_delivered_state() -> None:
    ledger, caller = ledger_of(("started", {})), CallerPosition()
    caller.deliver(result_at(ledger, 0, 1))
    ledger.append("died", cause="exit", **LOST)
    error = CodeError("TimeoutError", "the cell ran longer than 1 s and was interrupted; variables and files are kept")
    told = caller.deliver(CodeExecutionResult(error=error, stderr=str(error), record=ledger.record(1, 2, 2)))
    assert told.stderr == "TimeoutError: the cell ran longer than 1 s and was interrupted; variables from before are gone, files are kept"


SAVED = datetime(2026, 1, 1, tzinfo=UTC)


def restored(to: int, *missing: str) -> tuple[str, dict]:
    effects = {"variables": "restored", "files": "restored", "processes": "ended", "to": to, "cause": "restart"}
    return "restored", {**effects, "missing": missing, "saved": SAVED}


def test_what_an_unreported_restore_lacked_is_still_missing_after_the_next_one() -> None:
    state = ledger_of(restored(0, "a"), restored(1, "b")).between(0, 2)
    assert state == State("restored", "restored", "ended", "restart", missing=("a", "b"), saved=SAVED)


def test_a_rollback_before_a_save_is_reported_after_the_restore() -> None:
    state = ledger_of(("checkpoint", {"checkpoint": "1"}), rolled_back(1, cause="crash", checkpoint="1"), restored(2)).between(0, 3)
    assert state == State("rolled_back", "rolled_back", "ended", "crash", checkpoint="1", saved=SAVED)


def test_a_summary_names_what_is_missing() -> None:
    entries = ledger_of(restored(0, "a"), *[("checkpoint", {})] * 9)._entries
    assert state_between(summarize(entries, 3), 0, 10) == state_between(entries, 0, 10)
    assert state_between(summarize(entries, 3), 0, 10).missing == ("a",)


def test_an_older_result_that_arrives_late_does_not_hide_how_many_cells_were_not_saved() -> None:
    ledger, caller = ledger_of(("started", {})), CallerPosition()
    records = []
    for ledger.cells in (1, 2, 3):
        records.append(ledger.record(0, 1, 1))
    for number in (0, 2, 1):
        caller.advance(records[number])
    kind, effects = restored(1)
    ledger.append(kind, **effects, cells=1)
    ledger.cells = 2
    record = ledger.record(0, 2, 2)
    assert caller.state_after(record).unsaved == 2
    caller.advance(record)
    assert caller.cells == 2
