"""Test how pip's output is translated into errors of this project."""

import pytest

from aca_sessions.sandbox.packages.resolver import explain_failure, filter_progress, redact

_NONE = "ERROR: Could not find a version that satisfies the requirement thing (from versions: none)\n"


@pytest.mark.parametrize(
    ("output", "name", "part"),
    [
        (_NONE, "PackageNotFoundError", "the index does not have a package thing"),
        (
            f"WARNING: Retrying after connection broken by 'NewConnectionError'\n{_NONE}",
            "IndexUnreachableError",
            "check this host's network",
        ),
        (f"Skipping link: none of the wheel's tags (cp39) are compatible\n{_NONE}", "NoWheelError", "no wheel"),
        (f"Skipping link: No sources permitted for thing\n{_NONE}", "NoWheelError", "nothing is built from source"),
        (
            f"to search for versions of other:\nNo sources permitted\n1 location(s) to search for versions of thing:\n{_NONE}",
            "PackageNotFoundError",
            "the index does not have a package thing",
        ),
        (f"Link requires a different Python (3.11.7 not in: '>=3.99')\n{_NONE}", "NoWheelError", "no wheel"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "DiskFullError", "CacheFolder"),
        ("OSError: [Errno 27] File too large", "PackageTooLargeError", "CacheMegabytes"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "PackageChangedError", "not the one"),
        ("ERROR: HTTP error 403 Client Error: Forbidden", "IndexRefusedError", "IndexUrl"),
        ("ERROR: Cannot find command 'git' - do you have 'git' installed", "BuildRefusedError", "only ready-made wheels"),
        ("ERROR: something new\nmore", "PackageError", "something new"),
        ("", "PackageError", "without a message"),
    ],
)
def test_each_failure_is_classified(output: str, name: str, part: str) -> None:
    error = explain_failure(output)
    assert error.name == name
    assert part in str(error)


def test_a_conflict_is_reported_with_its_causes() -> None:
    causes = "The conflict is caused by:\n    The user requested a>1\n    The user requested (constraint) b==2\n\nTo fix this …\n"
    assert str(explain_failure(f"{causes}ERROR: ResolutionImpossible: for help visit")).splitlines()[1:] == [
        "asked for is a>1",
        "the sessions' environment has b==2",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Looking in indexes: https://reader:pa%40ss@example.org/deep-token/simple",
        "Max retries exceeded with url: /deep-token/simple/thing/",
        "401 for reader with pa@ss at example.org",
    ],
)
def test_no_address_and_no_part_of_one_is_shown(text: str) -> None:
    told = redact(text, ["https://reader:pa%40ss@example.org/deep-token/simple"])
    assert not any(secret in told for secret in ("pa%40ss", "pa@ss", "deep-token", "reader"))


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Collecting alpha\n", "Collecting alpha"),
        ("  Downloading alpha-1.0.whl (5 MB)", "Downloading alpha-1.0.whl (5 MB)"),
        ("Processing /home/me/wheels/alpha-1.0.whl (from beta)", "Processing alpha-1.0.whl (from beta)"),
        ("  Downloading https://example.org/alpha.whl", None),
        ("Looking in links: /home/me/wheels", None),
    ],
)
def test_progress_is_shown_without_addresses_and_folders(line: str, told: str | None) -> None:
    assert filter_progress(line) == told
