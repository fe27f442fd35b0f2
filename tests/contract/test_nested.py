"""Test that both halves of 2024-02-02-preview agree with each other and with recorded Azure replies."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aca_sessions.contract import nested
from aca_sessions.contract.records import ExecutionRequest, ExecutionResponse, ProblemError
from aca_sessions.models import CodeExecutionResult, RemoteFile

from .test_flat import FILES, RESULTS, TEXT, through_json

GOLDEN = Path(__file__).parent / "golden"
CALLS = st.builds(ExecutionRequest, code=TEXT.filter(str.strip), timeout=st.none() | st.integers(1, 220))


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@given(CALLS)
def test_a_call_survives_encoding_and_decoding(call: ExecutionRequest) -> None:
    assert nested.decode_request(through_json(nested.encode_request(call))) == call


@given(RESULTS)
def test_a_rich_result_survives_encoding_and_decoding(result: CodeExecutionResult) -> None:
    execution = ExecutionResponse(id="e", identifier="s", status="Succeeded" if result.success else "Failed", result=result)
    body = through_json(nested.encode_execution(execution, 10, full=True))
    assert nested.decode_execution(body, id="e", identifier="s") == execution


@given(st.lists(FILES.filter(lambda file: not file.directory and not file.is_directory and "/" not in file.name), max_size=3))
def test_files_survive_encoding_and_decoding(files: list[RemoteFile]) -> None:
    assert nested.decode_files(through_json(nested.encode_files(files))) == files


def test_a_recorded_execution_is_what_the_server_would_encode() -> None:
    recorded = golden("nested_execution")
    execution = nested.decode_execution(recorded, id="e", identifier="s")
    assert (execution.result.stdout, execution.result.value, execution.result.duration) == ("hi\n", None, 0.008)
    assert nested.encode_execution(execution, 4096, full=False) == recorded


def test_a_recorded_listing_is_what_the_server_would_encode() -> None:
    recorded = golden("nested_files")
    (file,) = nested.decode_files(recorded)
    assert (file.name, file.size) == ("upload.md", 55)
    said = nested.encode_files([file])
    recorded["value"][0]["properties"]["lastModifiedTime"] = "2025-10-12T15:42:24.3470660Z"  # a datetime cannot hold the seventh digit
    assert said == recorded


def test_a_file_name_is_read_without_its_path() -> None:
    body = golden("nested_files")
    body["value"][0]["properties"]["filename"] = "/mnt/data/upload.md"
    assert nested.decode_upload(body).name == "upload.md"


@pytest.mark.parametrize(
    "body", [{}, [], None, {"properties": 3}, {"properties": {}}, {"properties": {"code": "1", "executionType": "asynchronous"}}]
)
def test_a_bad_body_is_refused(body: object) -> None:
    with pytest.raises(ProblemError):
        nested.decode_request(body)
