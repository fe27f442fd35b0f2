"""Test that `dir()` of the classes that users hold shows what they may call, each with a docstring, and nothing else."""

import inspect

import pytest

import aca_sessions

MEMBERS = {
    "Session": """
        branch checkpoint checkpoints complete delete_file download_file execute_command execution export filesystem health inspect
        install install_missing interrupt list_files packages reset rollback run save save_file set_network start stream supports
        to_notebook undo uninstall upload_file variables write_notebook write_script
    """,
    "SessionPool": "active close forget get_or_create import_ release saved session terminate",
    "CodeInterpreter": """
        can_end_sessions checkpoint checkpoints close delete_checkpoint delete_file delete_session download_file execute execution
        export forget get_session import_ install interrupt is_closed isolation list_files list_sessions packages reset save save_file
        saved start supports uninstall upload_file
    """,
    "InteractiveSession": """
        branch checkpoint checkpoints close complete delete_file download_file execute_command export filesystem health history inspect
        install interrupt join list_files open packages replay reset rollback run save save_file set_network stream supports undo uninstall
        upload_file variables write_notebook write_script
    """,
    "PythonCodeInterpreterPlugin": """
        close download_file end_session execute_python execute_python_with_files for_session install install_packages list_files run
        upload_file
    """,
}


NAMES = [
    pytest.param(name, marks=pytest.mark.needs("semantic_kernel")) if name == "PythonCodeInterpreterPlugin" else name for name in MEMBERS
]


def members(name: str) -> set[str]:
    return {member for member in dir(getattr(aca_sessions, name)) if not member.startswith("_")}


@pytest.mark.parametrize("name", NAMES)
def test_a_class_shows_what_users_may_call_and_nothing_else(name: str) -> None:
    assert members(name) == {*MEMBERS[name].split()}


@pytest.mark.parametrize("name", NAMES)
def test_every_public_member_has_a_docstring_of_its_own(name: str) -> None:
    shown = getattr(aca_sessions, name)
    for member in members(name):
        text = inspect.getdoc(getattr(shown, member))
        assert text, member
        assert text.split()[0].istitle(), f"{name}.{member} begins with {text.split()[0]!r}"


def test_the_package_shows_its_public_names_and_nothing_else() -> None:
    assert set(dir(aca_sessions)) == {*aca_sessions.__all__, "__version__"}


@pytest.mark.needs("semantic_kernel")
def test_every_public_name_of_the_package_has_a_docstring() -> None:
    for name in aca_sessions.__all__:
        assert name.startswith("__") or inspect.getdoc(getattr(aca_sessions, name)), name
