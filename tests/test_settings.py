"""Test the ACASessions section: where it comes from, and the errors for mistakes in it."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from aca_sessions import PackageSource, Policy, Settings, open_interpreter, open_pool
from aca_sessions.connect import policy_of
from aca_sessions.errors import ConfigurationError
from aca_sessions.hosting import Hosting

from .conftest import ROOT

pytestmark = pytest.mark.defaults


def write(section: dict, name: str = "appsettings.json") -> None:
    Path(name).write_text(json.dumps({"ACASessions": section}))


def test_without_any_source_there_is_no_endpoint() -> None:
    assert Settings().SessionsHttpClient.Endpoint is None


def test_a_file_is_read() -> None:
    write({"SessionPool": {"MaxConcurrentSessions": 3}, "AzureTokenProvider": {"Scopes": ["a", "b"]}})
    settings = Settings()
    assert settings.SessionPool.MaxConcurrentSessions == 3
    assert settings.AzureTokenProvider.Scopes == ("a", "b")


def test_a_file_with_a_byte_order_mark_is_read() -> None:
    Path("appsettings.json").write_bytes(b"\xef\xbb\xbf" + b'{"ACASessions": {"ContainerImage": "python:3.11-slim"}}')
    assert Settings().ContainerImage == "python:3.11-slim"


def test_the_environments_file_overrides_the_common_one(monkeypatch: pytest.MonkeyPatch) -> None:
    write({"SessionPool": {"MaxConcurrentSessions": 3, "SessionTimeoutMinutes": 5}})
    write({"SessionPool": {"MaxConcurrentSessions": 4}}, "appsettings.Production.json")
    monkeypatch.setenv("ACA_ENVIRONMENT", "Production")
    pool = Settings().SessionPool
    assert (pool.MaxConcurrentSessions, pool.SessionTimeoutMinutes) == (4, 5)


@pytest.mark.parametrize("name", ["ACASessions__SessionsHttpClient__Endpoint", "ACASESSIONS__SESSIONSHTTPCLIENT__ENDPOINT"])
def test_the_environment_overrides_files_in_any_case(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write({"SessionsHttpClient": {"Endpoint": "https://file.example", "ApiKey": "k"}})
    monkeypatch.setenv(name, "https://environment.example")
    client = Settings().SessionsHttpClient
    assert client.Endpoint == "https://environment.example"
    assert client.ApiKey is not None


def test_arguments_override_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    write({"SessionPool": {"MaxConcurrentSessions": 3}})
    monkeypatch.setenv("ACASessions__SessionPool__MaxConcurrentSessions", "4")
    assert Settings(MaxConcurrentSessions=320).SessionPool.MaxConcurrentSessions == 320
    assert Settings(SessionPool={"MaxConcurrentSessions": 5}).SessionPool.MaxConcurrentSessions == 5


def test_flat_names_are_accepted_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    write({"Endpoint": "https://pool.example", "ApiKey": "k", "SessionTimeoutMinutes": 12})
    monkeypatch.setenv("ACASessions__MaxConcurrentSessions", "7")
    settings = Settings()
    assert settings.SessionsHttpClient.Endpoint == "https://pool.example"
    assert settings.SessionPool.SessionTimeoutMinutes == 12
    assert settings.SessionPool.MaxConcurrentSessions == 7
    assert (settings.Endpoint, settings.SessionTimeoutMinutes, settings.MaxConcurrentSessions) == ("https://pool.example", 12, 7)
    assert settings.ApiKey is not None
    assert settings.ApiKey.get_secret_value() == "k"


def test_the_effective_defaults_can_be_read() -> None:
    settings = Settings()
    assert (settings.MaxConcurrentSessions, settings.SessionTimeoutMinutes) == (10, 30)
    assert settings.SessionPool.model_dump() == {"MaxConcurrentSessions": 10, "SessionTimeoutMinutes": 30, "AcquireTimeoutSeconds": 60}
    assert settings.AzureTokenProvider.Scopes == ("https://dynamicsessions.io/.default",)
    assert settings.Sandbox.Network == ("none",)
    assert policy_of(settings) == replace(Policy(), packages=PackageSource(cache=PackageSource().folder))
    unset = {name for name, value in _leaves(settings.model_dump()) if value is None}
    assert unset == {
        "Endpoint",
        "ApiKey",
        "Cpu",
        "Preload",
        "Python",
        "Tenant",
        "Environment",
        "IndexUrl",
        "WheelFolder",
        "File",
        "Store",
        "Key",
        "ContainerImage",
    }


def _leaves(values: dict) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        yield from _leaves(value) if isinstance(value, dict) else [(name, value)]


def test_limits_are_derived_from_the_memory() -> None:
    limits = Settings(Sandbox={"Limits": {"MemoryMegabytes": 128}}).Sandbox.Limits
    assert (limits.MemoryMegabytes, limits.DiskMegabytes, limits.TemporaryMegabytes) == (128, 64, 32)


def test_null_means_unset_as_in_dotnet() -> None:
    write({"SessionPool": {"MaxConcurrentSessions": None}, "MaxConcurrentSessions": 3, "Sandbox": {"Limits": {"Processes": None}}})
    assert Settings().MaxConcurrentSessions == 3
    assert Settings().Sandbox.Limits.Processes == 128


def test_comments_and_trailing_commas_are_read_as_dotnet_reads_them() -> None:
    Path("appsettings.json").write_text("""// the pool
    {
        "ACASessions": {  /* at most
                             so many, */
            "Endpoint": "https://pool.example", // "ApiKey": "no",
            "ApiKey": "a//b/*c*/,}",
            "AzureTokenProvider": {"Scopes": ["a", "b", ] /* two */, },
        },
    }
    """)
    settings = Settings()
    assert settings.Endpoint == "https://pool.example"
    assert settings.ApiKey is not None
    assert settings.ApiKey.get_secret_value() == "a//b/*c*/,}"
    assert settings.AzureTokenProvider.Scopes == ("a", "b")


MISTAKES = [
    ('{\n"ACASessions": {\n// x\n"Endpoint": nonsense\n}}', "line 4: cannot be read as JSON"),
    (
        '{"ACASessions": {\n/* a\ncomment */ "SessionPool": {\n"MaxConcurrentSessions": 0}}}',
        "line 4: ACASessions:SessionPool:MaxConcurrentSessions:",
    ),
    ('{"ACASessions": {\n"SessionPol": {}}}', "line 2: ACASessions:SessionPol is not a setting: did you mean SessionPool?"),
    ('{"ACASessions": {\n"SessionPool": {},\n"SessionTimeoutMinutes": -1,}}', "line 3: ACASessions:SessionPool:SessionTimeoutMinutes:"),
    (
        '{"ACASessions": {"Sandbox": {"Mounts": [\n{"Host": "/usr", "Guest": "/mnt/a"},\n{"Host": "/usr"}]}}}',
        "line 3: ACASessions:Sandbox:Mounts:1:",
    ),
    (
        '{"ACASessions": {"Endpoint": "https://a.example",\n"SessionsHttpClient": {"Endpoint": "https://b.example"}}}',
        "line 1: ACASessions:Endpoint and",
    ),
    ('{\n"ACASession": {}}', "line 2: ACASession is not a section"),
    ('{"ACASessions": [,]}', "line 1: cannot be read as JSON"),
    ('{\n"ACASessions": 3}', "line 2: ACASessions must be an object"),
]


@pytest.mark.parametrize(("text", "message"), MISTAKES)
def test_a_mistake_in_a_file_names_its_line(text: str, message: str) -> None:
    Path("appsettings.json").write_text(text)
    with pytest.raises(ConfigurationError) as raised:
        Settings()
    assert str(raised.value).startswith(f"appsettings.json, {message}")


def test_a_mistake_in_a_variable_is_not_attributed_to_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write({"SessionPool": {"MaxConcurrentSessions": 3}})
    monkeypatch.setenv("ACASessions__MaxConcurrentSessions", "0")
    with pytest.raises(ConfigurationError, match=r"^the environment: ACASessions:SessionPool:MaxConcurrentSessions"):
        Settings()
    with pytest.raises(ConfigurationError, match=r"^ACASessions:SessionPool:MaxConcurrentSessions"):
        Settings(MaxConcurrentSessions=-1)


@pytest.mark.parametrize("scopes", ["a b", "a,b", "a; b", '["a", "b"]'])
def test_scopes_may_be_delimited_text(scopes: str) -> None:
    assert Settings(AzureTokenProvider={"Scopes": scopes}).AzureTokenProvider.Scopes == ("a", "b")


def test_a_socket_file_is_an_endpoint() -> None:
    assert Settings(Endpoint="unix:///run/sessions.sock").SessionsHttpClient.Endpoint == "unix:///run/sessions.sock"


@pytest.mark.parametrize(
    ("section", "named", "advice"),
    [
        (
            {"SessionPool": {"MaxConcurentSessions": 3}},
            "ACASessions:SessionPool:MaxConcurentSessions",
            "did you mean MaxConcurrentSessions?",
        ),
        ({"SessionPol": {}}, "ACASessions:SessionPol", "did you mean SessionPool?"),
        ({"SessionPool": {"MaxConcurrentSessions": 0}}, "ACASessions:SessionPool:MaxConcurrentSessions", "greater than 0"),
        ({"SessionTimeoutMinutes": -1}, "ACASessions:SessionPool:SessionTimeoutMinutes", "greater than 0"),
        (
            {"Sandbox": {"Limits": {"CellTimeoutSeconds": 400}}},
            "ACASessions:Sandbox:Limits:CellTimeoutSeconds",
            "less than or equal to 220",
        ),
        ({"Endpoint": "https://{region}.dynamicsessions.io"}, "ACASessions:SessionsHttpClient:Endpoint", "placeholder"),
        ({"Endpoint": "https://<REGION>.dynamicsessions.io"}, "ACASessions:SessionsHttpClient:Endpoint", "placeholder"),
        ({"Endpoint": "https://[region].dynamicsessions.io"}, "ACASessions:SessionsHttpClient:Endpoint", "placeholder"),
        ({"Endpoint": "https://YOUR_REGION.dynamicsessions.io"}, "ACASessions:SessionsHttpClient:Endpoint", "placeholder"),
        ({"ApiKey": "<key>"}, "ACASessions:SessionsHttpClient:ApiKey", "placeholder"),
        ({"Endpoint": "https://me:hunter2@pool.example"}, "ACASessions:SessionsHttpClient:Endpoint", "put the server's key into ApiKey"),
        ({"Endpoint": "pool.example"}, "ACASessions:SessionsHttpClient:Endpoint", "https://"),
        ({"SessionsHttpClient": {"ApiVersion": "2019-01-01"}}, "ACASessions:SessionsHttpClient:ApiVersion", "2025-10-02-preview"),
        (
            {"Endpoint": "https://a.example", "SessionsHttpClient": {"Endpoint": "https://b.example"}},
            "ACASessions:SessionsHttpClient:Endpoint",
            "contradict",
        ),
        ({"endpoint": "https://pool.example"}, "ACASessions:endpoint", "did you mean Endpoint?"),
        ({"SessionsHttpClient": 5, "Endpoint": "https://pool.example"}, "ACASessions:SessionsHttpClient", "must be an object"),
        ({"Endpoint": "http://host:port"}, "ACASessions:SessionsHttpClient:Endpoint", "port as a number"),
        ({"Endpoint": "http://[::1"}, "ACASessions:SessionsHttpClient:Endpoint", "must be a URL"),
        ({"ApiKey": "ke\ny"}, "ACASessions:SessionsHttpClient:ApiKey", "copy the key alone"),
        ({"SessionTimeoutMinutes": 1e300}, "ACASessions:SessionPool:SessionTimeoutMinutes", "less than or equal"),
        ({"Sandbox": {"Limits": {"OpenFiles": 1}}}, "ACASessions:Sandbox:Limits:OpenFiles", "greater than or equal"),
        ({"Sandbox": {"Preload": "[numpy"}}, "ACASessions:Sandbox:Preload", "must be a JSON list"),
        ({"Packages": {"IndexUrl": "pypi.example/simple"}}, "ACASessions:Packages:IndexUrl", "begin it with https://"),
        ({"Packages": {"WheelFolder": "nowhere"}}, "ACASessions:Packages:WheelFolder", "must be a folder of this host"),
        ({"Packages": {"CacheMegabytes": 0}}, "ACASessions:Packages:CacheMegabytes", "greater than 0"),
        ({"Packages": {"Index": "x"}}, "ACASessions:Packages:Index", "did you mean IndexUrl?"),
        ({"Sandbox": {"Network": "everything"}}, "ACASessions:Sandbox:Network", "none"),
    ],
)
def test_a_mistake_is_named_with_advice(section: dict, named: str, advice: str) -> None:
    write(section)
    with pytest.raises(ConfigurationError) as raised:
        Settings()
    assert named in str(raised.value)
    assert advice in str(raised.value)


def test_a_misspelt_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACASessions__Enpoint", "https://pool.example")
    with pytest.raises(ConfigurationError, match=r"ACASessions__Enpoint .* did you mean Endpoint\?"):
        Settings()
    monkeypatch.delenv("ACASessions__Enpoint")
    monkeypatch.setenv("ACASessions__Sanbox__Network", "host")
    with pytest.raises(ConfigurationError, match=r"ACASessions__Sanbox__Network .* did you mean Sandbox\?"):
        Settings()


CONTRADICTIONS = [
    {"ACASESSIONS__ENDPOINT": "https://hunter2.example", "acasessions__endpoint": "https://hunter3.example"},
    {"ACASessions__ApiKey": "hunter2", "ACASessions__SessionsHttpClient__ApiKey": "hunter3"},
    {"ACASessions__SessionsHttpClient": '{"ApiKey": "hunter2"}', "ACASessions__SessionsHttpClient__ApiKey": "hunter3"},
    {"ACASessions__Sandbox": '{"Limits": {"Processes": 100}}', "acasessions__sandbox__limits__processes": "101"},
]


@pytest.mark.parametrize("variables", CONTRADICTIONS)
def test_contradicting_variables_are_named(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match="contradict each other") as raised:
        Settings()
    assert "hunter" not in str(raised.value)
    for name in variables:
        monkeypatch.setenv(name, variables[next(iter(variables))])
    if not any("{" in value for value in variables.values()):
        Settings()  # the same value twice is no contradiction


@pytest.mark.parametrize("variable", ["ACASessions__Sandbox__Mounts", "acasessions__mcp", "ACASESSIONS__Sandbox__Limits"])
def test_a_variable_that_must_be_json_is_named(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv("ACASessions__Sandbox__Network", "none")
    monkeypatch.setenv(variable, "hunter2")
    with pytest.raises(ConfigurationError, match=f"^the environment variable {variable} must be JSON: correct it or unset it$"):
        Settings()


@pytest.mark.parametrize("variable", ["ACASessions_Endpoint", "ACASESSIONS:ENDPOINT", "acasessions_sessionpool_maxconcurrentsessions"])
def test_a_variable_with_another_separator_is_named(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "hunter2")
    with pytest.raises(ConfigurationError, match=f"{variable} is not a setting: did you mean ACASessions__"):
        Settings()


def test_variables_that_kubernetes_sets_for_a_service_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACASESSIONS_SERVICE_HOST", "ACASESSIONS_MCP_SERVICE_PORT", "ACASESSIONS_PORT_80_TCP_ADDR", "ACASESSIONS_SANDBOX_PORT"):
        monkeypatch.setenv(name, "10.0.0.1")
    assert Settings().SessionsHttpClient.Endpoint is None


def test_a_named_file_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACA_ENVIRONMENT", "Staging")
    with pytest.raises(ConfigurationError, match=r"appsettings\.Staging\.json"):
        Settings()


@pytest.mark.parametrize("content", ["{", "[]", '{"ACASessions": 3}'])
def test_a_file_without_settings_is_named(content: str) -> None:
    Path("appsettings.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"appsettings\.json"):
        Settings()


def test_a_mistake_in_a_secret_does_not_show_it() -> None:
    with pytest.raises(ConfigurationError) as raised:
        Settings(ApiKey=["hunter2"])
    assert "hunter2" not in str(raised.value)
    assert "hunter2" not in repr(Settings(ApiKey="hunter2"))
    with pytest.raises(ConfigurationError) as raised:
        Settings(Packages={"IndexUrl": "ftp://me:hunter2@example.org"})
    assert "hunter2" not in str(raised.value)
    assert "hunter2" not in repr(Settings(Packages={"IndexUrl": "https://me:hunter2@example.org"}))


def test_no_key_is_shown_in_a_repr() -> None:
    shown = repr(Hosting(api_key="hunter2", metrics_key="hunter3")) + repr(Settings(ApiKey="hunter4"))
    assert "hunter" not in shown
    with pytest.raises(ConfigurationError) as raised:
        Settings(Endpoint="https://me:hunter2@pool.example/sessions")
    assert "hunter" not in str(raised.value)
    assert Settings(Endpoint="http://[::1]:8080").SessionsHttpClient.Endpoint == "http://[::1]:8080"
    assert Settings(Endpoint="https://box.your-server.de").SessionsHttpClient.Endpoint == "https://box.your-server.de"


@pytest.mark.parametrize("section", ["ACASession", "acasessions", "AcaSessions"])
def test_a_misspelt_section_is_named(section: str) -> None:
    Path("appsettings.json").write_text(json.dumps({section: {}, "Logging": {}}))
    with pytest.raises(ConfigurationError, match="did you mean ACASessions"):
        Settings()


def test_other_sections_are_ignored() -> None:
    Path("appsettings.json").write_text(json.dumps({"Logging": {}, "AzureOpenAI": {}, "ConnectionStrings": {}}))
    assert Settings().SessionsHttpClient.Endpoint is None


def test_a_folder_in_the_place_of_the_file_is_named() -> None:
    Path("appsettings.json").mkdir()
    with pytest.raises(ConfigurationError, match=r"appsettings\.json"):
        Settings()


async def test_arguments_override_the_settings() -> None:
    async with open_pool(Settings(MaxConcurrentSessions=5), max_concurrent_sessions=7) as pool:
        assert "of 7" in repr(pool)


async def test_the_example_file_starts_embedded_and_reports_it(caplog: pytest.LogCaptureFixture) -> None:
    Path("appsettings.json").write_bytes((ROOT / "appsettings.example.json").read_bytes())
    with caplog.at_level("INFO", "aca_sessions"):
        async with open_pool() as pool, pool.session() as session:
            assert (await session.run("6 * 7")).value == 42
    assert sum("embedded" in record.message for record in caplog.records) == 1


async def test_azure_pools_use_a_credential_and_need_no_key() -> None:
    for endpoint in ("https://pool.env.westeurope.azurecontainerapps.io", "https://westeurope.dynamicsessions.io/subscriptions/s"):
        async with open_interpreter(endpoint=endpoint) as interpreter:
            assert interpreter is not None


async def test_an_endpoint_outside_azure_needs_a_key() -> None:
    with pytest.raises(ConfigurationError, match="ApiKey"):
        async with open_pool(endpoint="http://127.0.0.1:1"):
            pass


@pytest.mark.parametrize(
    ("value", "words"),
    [("none", ("none",)), ("host", ("host",)), ("pypi.org, *.example.org", ("pypi.org", "*.example.org")), (None, ("none",))],
)
def test_the_network_is_none_host_or_a_list_of_domains(value: object, words: object) -> None:
    assert Settings(Sandbox={"Network": value}).Sandbox.Network == words


def test_a_network_is_of_one_kind_only() -> None:
    with pytest.raises(ConfigurationError, match="Sandbox:Network"):
        Settings(Sandbox={"Network": ["host", "example.org"]})
