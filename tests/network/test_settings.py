"""Test the settings of networks with rules and of secrets: their sources, their errors, and that no value of a header is shown."""

import json
from pathlib import Path
from typing import Any

import pytest

from aca_sessions import Network, NetworkLimits, Rule, Secret, Settings, open_pool
from aca_sessions.connect import access_of, network_of, policy_of
from aca_sessions.errors import ConfigurationError
from aca_sessions.hints import access_sentences
from aca_sessions.network.secrets import SecretStore
from aca_sessions.sandbox.probe import report

LITERAL = "a-literal-secret"
VAULT = "https://v.vault.azure.net/secrets/db"
GITHUB = {"Host": "api.github.com", "Methods": ["GET"], "Paths": ["/repos/**"], "Headers": {"Authorization": "Bearer ${secret:github}"}}
STORAGE = {"Host": "*.blob.core.windows.net", "Methods": "GET, PUT", "Identity": "https://storage.azure.com/.default", "Megabytes": 10}
NETWORK = {"Rules": [GITHUB, STORAGE, {"Host": "*.example.org"}], "Requests": 1000}
SECRETS = {"github": {"Environment": "GITHUB_TOKEN"}, "db": {"KeyVault": VAULT}, "file": {"File": "/run/token"}}
EXPECTED = Network.rules(
    [
        Rule("api.github.com", ("GET",), ("/repos/**",), {"Authorization": "Bearer ${secret:github}"}),
        Rule("*.blob.core.windows.net", ("GET", "PUT"), identity="https://storage.azure.com/.default", megabytes=10),
        Rule("*.example.org"),
    ],
    secrets={"github": Secret.environment("GITHUB_TOKEN"), "db": Secret.key_vault(VAULT), "file": Secret.file("/run/token")},
    limits=NetworkLimits(requests=1000),
)


def write(section: dict[str, Any]) -> None:
    Path("appsettings.json").write_text(json.dumps({"ACASessions": section}, indent=1))


@pytest.mark.parametrize("source", ["arguments", "file", "variables", "text"])
async def test_rules_and_secrets_come_from_every_source(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    given: dict[str, Any] = {"Sandbox": {"Network": NETWORK}, "Secrets": SECRETS}
    match source:
        case "file":
            write(given)
            given = {}
        case "variables":
            monkeypatch.setenv("ACASessions__Sandbox__Network", json.dumps(NETWORK))
            monkeypatch.setenv("ACASESSIONS__SECRETS", json.dumps(SECRETS))
            given = {}
        case "text":  # as `--network` passes it
            given["Sandbox"] = {"Network": json.dumps(NETWORK)}
    monkeypatch.setenv("GITHUB_TOKEN", "the-token")
    network = policy_of(Settings(**given)).network
    assert network == EXPECTED
    assert await SecretStore(network.secrets).fill(network.hosts[0].headers["Authorization"]) == "Bearer the-token"


def test_a_variable_for_one_secret_is_added_to_those_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    write({"Secrets": {"db": {"KeyVault": VAULT}, "github": {"File": "/run/token"}}})
    monkeypatch.setenv("ACASessions__Secrets__mine__Environment", "MY_TOKEN")
    monkeypatch.setenv("ACASessions__Secrets__his__Keyring__Service", "git")
    monkeypatch.setenv("ACASessions__Secrets__his__Keyring__User", "Me")
    monkeypatch.setenv("ACASessions__Secrets__hers__Keyring", '{"Service": "git", "User": "her"}')
    assert {name: one.secret() for name, one in Settings().Secrets.items()} == {
        "db": Secret.key_vault(VAULT),
        "github": Secret.file("/run/token"),
        "mine": Secret.environment("MY_TOKEN"),
        "his": Secret.keyring("git", "Me"),
        "hers": Secret.keyring("git", "her"),
    }


def test_words_of_an_argument_replace_the_rules_of_a_file() -> None:
    write({"Sandbox": {"Network": NETWORK}, "Secrets": SECRETS})
    assert network_of(Settings(Sandbox={"Network": "none"})) == Network.none()
    assert network_of(Settings(Sandbox={"Network": ["a.example"]})) == Network.allow("a.example")
    write({"Sandbox": {"Network": "host"}})
    assert network_of(Settings()) == Network.host()
    assert network_of(Settings(Sandbox={"Network": {"Rules": [{"Host": "a.example"}]}})) == Network.rules([Rule("a.example")])


RULE = {"Host": "a.example"}
WITH_HEADER = {**RULE, "Headers": {"X-Key": LITERAL}}


@pytest.mark.parametrize(
    ("section", "line", "problem"),
    [
        ({"Sandbox": {"Network": {}}}, 4, "Sandbox:Network:Rules: must be set"),
        ({"Sandbox": {"Network": {"Rules": []}}}, 5, "Sandbox:Network:Rules: must have a rule"),
        ({"Sandbox": {"Network": {"Rules": [WITH_HEADER], "Rulez": 1}}}, 13, "Sandbox:Network:Rulez is not a setting: did you mean Rules?"),
        ({"Sandbox": {"Network": {"Rules": [{}]}}}, 6, "Sandbox:Network:Rules:0:Host: must be set"),
        ({"Sandbox": {"Network": {"Rules": [RULE, {**WITH_HEADER, "Hots": 1}]}}}, 14, "Rules:1:Hots is not a setting: did you mean Host?"),
        ({"Sandbox": {"Network": {"Rules": [{**WITH_HEADER, "Methods": ["get"]}]}}}, 6, "Rules:0: Methods of a.example must be methods"),
        ({"Sandbox": {"Network": {"Rules": [{**RULE, "Headers": {"X-Key": f"{LITERAL}\n"}}]}}}, 6, "the value of X-Key must be printable"),
        (
            {"Sandbox": {"Network": {"Rules": [{**RULE, "Headers": {"X-Key": [LITERAL]}}]}}},
            9,
            "Headers:X-Key: must be a valid string, got l",
        ),
        ({"Sandbox": {"Network": {"Rules": [{**RULE, "Headers": LITERAL}]}}}, 8, "Rules:0:Headers: must be a valid dictionary, got str"),
        ({"Sandbox": {"Network": {"Rules": [{**RULE, "Requests": 0}]}}}, 8, "Rules:0:Requests: must be greater than 0, got 0"),
        ({"Sandbox": {"Network": {"Rules": LITERAL}}}, 5, "Sandbox:Network:Rules: must be a valid tuple, got str"),
        ({"Sandbox": {"Network": f'{{"Rules": {LITERAL}'}}, 4, "Sandbox:Network: must be none, host, domains or a JSON object with Rules"),
        ({"Secrets": {"github": LITERAL}}, 4, "Secrets:github: must be an object of settings, got str"),
        ({"Secrets": {"github": {}}}, 4, "Secrets:github: must have one of Environment, File, Keyring, KeyVault, got none"),
        (
            {"Secrets": {"github": {"File": "a", "KeyVault": VAULT}}},
            4,
            "Secrets:github: must have one of Environment, File, Keyring, KeyVa",
        ),
        ({"Secrets": {"github": {"Envronment": "A"}}}, 5, "Secrets:github:Envronment is not a setting: did you mean Environment?"),
        ({"Secrets": {"github": {"KeyVault": f"https://{LITERAL}.example"}}}, 4, "Secrets:github: the URL of a secret in Key Vault must"),
        ({"Secrets": {"github": {"Keyring": {"Service": "a"}}}}, 5, "Secrets:github:Keyring:User: must be set"),
        ({"Secrets": {"github": {"Keyring": LITERAL}}}, 5, "Secrets:github:Keyring: must be an object with Service and User"),
        ({"Secrets": {"git hub": {"File": "a"}}}, 3, "Secrets: the name of a secret must have at most 100 letters"),
        ({"Secrets": LITERAL}, 3, "Secrets: must be a valid dictionary, got str"),
        ({"Sandbox": {"Mounts": [{"Host": "/", "Guets": "/mnt/a"}]}}, 7, "Mounts:0:Guets is not a setting: did you mean Guest?"),
    ],
)
def test_a_mistake_is_named_with_its_line_and_without_values(section: dict[str, Any], line: int, problem: str) -> None:
    write(section)
    with pytest.raises(ConfigurationError) as raised:
        Settings()
    error = raised.value
    assert problem in str(error)
    assert f"appsettings.json, line {line}: ACASessions:" in str(error)
    assert LITERAL not in str(error)
    assert (error.__cause__, error.__context__) == (None, None)


@pytest.mark.parametrize(("secrets", "advice"), [(SECRETS, "did you mean github?"), ({}, "add it")])
def test_a_secret_that_is_not_there_is_an_error_at_the_start(secrets: dict[str, Any], advice: str) -> None:
    header = f"{LITERAL} ${{secret:gihub}}"
    write({"Sandbox": {"Network": {"Rules": [RULE, {**RULE, "Headers": {"Authorization": header}}]}}, "Secrets": secrets})
    with pytest.raises(ConfigurationError) as raised:
        Settings()
    assert str(raised.value) == (
        "appsettings.json, line 12: ACASessions:Sandbox:Network:Rules:1:Headers:Authorization: "
        f"the secret 'gihub' is not in ACASessions:Secrets: {advice}"
    )


def test_settings_show_the_names_of_headers_and_not_their_values() -> None:
    settings = Settings(Sandbox={"Network": {"Rules": [WITH_HEADER]}})
    dumps = [repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json(), repr(policy_of(settings))]
    assert all(LITERAL not in text for text in dumps)
    assert all("X-Key" in text for text in dumps[:4])
    assert policy_of(settings).network.hosts[0].headers == {"X-Key": LITERAL}


async def test_models_and_the_doctor_read_rules_without_headers() -> None:
    settings = Settings(Sandbox={"Network": {"Rules": [{**GITHUB, **WITH_HEADER, "Host": "api.github.com"}, {"Host": "*.example.org"}]}})
    expected = "api.github.com (GET /repos/**; the host adds X-Key), *.example.org"
    assert access_sentences(access_of(settings)) == f"The network has only these domains, by HTTP and HTTPS: {expected}."
    assert access_sentences(access_of(settings, policy_of(settings))) == access_sentences(access_of(settings))
    (finding,) = [one for one in (await report(policy_of(settings))).findings if one.name == "network" and "proxy" in one.how]
    assert expected in finding.how
    async with open_pool(settings, spares=0) as pool, pool.session() as session:
        assert (await session.run("6 * 7")).text == "42"
