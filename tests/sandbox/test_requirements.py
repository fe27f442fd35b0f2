"""Test which texts are requirements of packages, and which are refused."""

import pytest

from aca_sessions.sandbox.packages.requirements import (
    PackageError,
    check_environment_allows,
    is_met,
    is_pinned,
    parse_name,
    parse_requirements,
    spell_canonically,
)


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("Humanize", "humanize"),
        ("ruamel.yaml >= 0.17", "ruamel-yaml>=0.17"),
        ("Some_Name[b,A]==1.0", "some-name[a,b]==1.0"),
        ("x.tar.gz", "x-tar-gz"),
        ("pywin32; sys_platform == 'win32'", 'pywin32 ; sys_platform == "win32"'),
    ],
)
def test_a_requirement_has_one_spelling(text: str, written: str) -> None:
    assert spell_canonically(parse_requirements([text])[0]) == written


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "-e .",
        "--index-url=http://example.org",
        "-r requirements.txt",
        ".",
        "./package",
        "../package",
        "/etc/passwd",
        "package.whl @ file:///etc/passwd",
        "name @ file:///etc/passwd",
        "name @ https://example.org/name-1.0-py3-none-any.whl",
        "name@git+https://example.org/name",
        "git+https://example.org/name",
        "https://example.org/name-1.0.zip",
        "name\n--index-url=http://example.org",
        "name\r-e .",
        "name --config-settings=x",
        "name --hash=sha256:00",
        "${HOME}",
        "name==${HOME}",
        "$(id)",
        "name===1.0/../..",
        "name===1",
        "name; import os",
        "näme",
        "name\0",
        "n" * 301,
    ],
)
def test_a_text_that_is_more_than_a_requirement_is_refused(text: str) -> None:
    with pytest.raises(PackageError) as refused:
        parse_requirements([text])
    assert refused.value.name == "InvalidRequirementError"
    assert "passwd" not in str(refused.value)


@pytest.mark.parametrize("texts", [[], ["name"] * 101])
def test_the_number_of_packages_in_one_call_is_bounded(texts: list[str]) -> None:
    with pytest.raises(PackageError, match="1 to 100"):
        parse_requirements(texts)


@pytest.mark.parametrize(
    ("text", "met"),
    [("a", True), ("A>=1", True), ("a==1.5", True), ("a>2", False), ("b", False), ("a[x]", False), ("a; python_version>'3'", False)],
)
def test_a_requirement_is_met_by_an_installed_package(text: str, met: bool) -> None:
    assert is_met(parse_requirements([text])[0], {"a": "1.5"}) is met


def test_a_version_that_contradicts_the_environment_is_refused() -> None:
    with pytest.raises(PackageError, match=r"a>2 does not fit a 1\.5, which the sessions' environment has"):
        check_environment_allows({"a": "1.5"}, parse_requirements(["a>2"])[0])


@pytest.mark.parametrize(("text", "pinned"), [("a==1", True), ("a", False), ("a>=1", False), ("a==1.*", False), ("a==1,!=2", True)])
def test_a_requirement_is_pinned_if_it_names_one_version(text: str, pinned: bool) -> None:
    assert is_pinned(parse_requirements([text])[0]) is pinned


@pytest.mark.parametrize("name", ["", "a==1", "../a", "a b", "-a", "a/b", "*"])
def test_only_a_name_can_be_uninstalled(name: str) -> None:
    with pytest.raises(PackageError, match="by its name alone"):
        parse_name(name)
