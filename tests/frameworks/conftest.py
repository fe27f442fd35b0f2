"""Settings for the suites of frameworks. `make test-integrations` has an environment with the frameworks."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave these tests out of `make test`, and run suites that were written for other settings of pytest than ours."""
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        item.add_marker(pytest.mark.long)
        if hasattr(pytest, "PytestRemovedIn10Warning"):  # class-scoped fixtures that are methods, as in langchain-tests
            item.add_marker(pytest.mark.filterwarnings("ignore::pytest.PytestRemovedIn10Warning"))
        # pytest-asyncio runs tests that are marked `anyio`, as it runs all others. Otherwise their fixtures are in another event loop.
        if isinstance(item, pytest.Function) and "anyio_backend" in item.fixturenames:
            item.fixturenames.remove("anyio_backend")
