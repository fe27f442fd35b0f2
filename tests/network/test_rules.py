"""Test which hosts, methods and paths rules allow, and which rules are refused."""

import pytest

from aca_sessions import Denial, Network, NetworkLimits, Rule
from aca_sessions.errors import ConfigurationError
from aca_sessions.network.denials import decide
from aca_sessions.network.rules import normal_path

GITHUB = {"Host": "api.github.com", "Methods": ["GET"], "Paths": ["/repos/**"], "Headers": {"Authorization": "Bearer ${secret:github}"}}


def hosts(network: Network, host: str, port: int = 443) -> list[str]:
    return [rule.host for rule in network.rules_for(host, port)]


@pytest.mark.parametrize(
    ("pattern", "path", "allowed"),
    [
        ("/repos/**", "/repos/a/b", True),
        ("/repos/**", "/repos/", True),
        ("/repos/**", "/repos", False),
        ("/repos/**", "/Repos/a", False),
        ("/repos/**", "/reposx/a", False),
        ("/repos/*/issues", "/repos/a/issues", True),
        ("/repos/*/issues", "/repos//issues", False),
        ("/repos/*/issues", "/repos/a/b/issues", False),
        ("/repos/*/issues", "/repos/a/issues/1", False),
        ("/*", "/a", True),
        ("/*", "/", False),
        ("/a*b", "/ab", True),
        ("/a*b", "/a/b", False),
        ("/a*b", "/abab", True),
        ("/a*b", "/aba", False),
        ("/*a*b", "/xaxbx/b", False),
        ("/*ab*b", "/aabab", True),
        ("/*/**/*.json", "/a/b/c.json", True),
        ("/*/**/*.json", "/a/b.json", False),
        ("/**/a*/b/**c", "/x/a/a1/b/b/xc", True),
        ("/**/a*/b/**c", "/x/a1/b1/c", False),
        ("/**.x/b**", "/a.x.x/bb", True),
        ("/**/x", "/a/b/x", True),
        ("/a.b", "/aXb", False),
        ("/a b+(c)", "/a b+(c)", False),
        ("/été/**", "/%C3%A9t%C3%A9/1", True),
        ("/a", "/%61", True),
        ("/a", "/a?b=/../c", True),
    ],
)
def test_a_path_matches_the_pattern_that_was_written_for_it(pattern: str, path: str, allowed: bool) -> None:
    if " " in pattern:
        with pytest.raises(ConfigurationError, match="Paths of"):
            Rule("a.test", paths=(pattern,))
        return
    normal = normal_path(path)
    assert normal is not None
    assert Rule("a.test", paths=(pattern,)).allows("GET", normal) is allowed


def test_a_path_that_was_made_for_a_pattern_keeps_no_host_busy() -> None:
    for pattern in ("/*a*" * 12 + "/b", "/**/*a*b/**" + "/*a*b" * 8, "/**a/**b"):
        for path in (("/" + "a" * 160) * 12, "/" + "ab" * 1000, "/a" * 1000):
            assert not Rule("a.test", paths=(pattern,)).allows("GET", f"{path}/c")  # would not end


@pytest.mark.parametrize(
    "path",
    [
        *("", "a", "*", "https://a.test/repos/x", "/repos/../x", "/repos/./x", "/repos/..", "/repos/%2e%2e/x", "/repos/%2E./x", "/a%2fb"),
        *("/a%2Fb", "/a%5cb", "/a\\b", "/a%252e", "/a%252fb", "/a%255C", "/a%00", "/a%0d%0ab", "/a\tb", "/a#b", "/a%", "/a%4", "/a%zz"),
        *("/..;/x", "/..;a=b/x", "/%c0%ae%c0%ae/x", "/%ff", "/%ef%bc%8e%ef%bc%8e/x", "/a%ef%bc%8fb", "/a%e2%84%80b/x/..", "/" + "a" * 2048),
    ],
)
def test_a_path_that_servers_read_differently_has_no_normal_form(path: str) -> None:
    assert normal_path(path) is None


def test_the_most_specific_host_decides() -> None:
    network = Network.rules(
        [
            GITHUB,
            {"Host": "*.github.com"},
            {"Host": "*"},
            {"Host": "api.github.com:8443"},
            {**GITHUB, "Methods": ["POST"], "Paths": ["/gists"]},
        ],
        secrets={"github": "x"},
    )
    assert hosts(network, "api.github.com") == ["api.github.com", "api.github.com"]
    assert hosts(network, "api.github.com", 8443) == ["api.github.com:8443"]
    assert hosts(network, "uploads.github.com") == ["*.github.com"]
    assert hosts(network, "github.com") == ["*"]
    assert hosts(network, "api.github.com.evil.test") == ["*"]
    assert hosts(network, "other.test", 22) == []


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.5"])
def test_an_address_is_reached_only_if_a_rule_names_it(address: str) -> None:
    named = Network.rules([{"Host": "10.0.0.5"}, {"Host": "[fd00::1]:8443"}, {"Host": "*"}])
    assert hosts(named, address) == []
    assert hosts(named, "10.0.0.5") == ["10.0.0.5"]
    assert hosts(named, "fd00:0::1", 8443) == ["[fd00::1]:8443"]


def test_only_rules_that_need_it_are_inspected() -> None:
    assert not Network.allow("a.test", "*.b.test").is_inspected
    for key in ({"Methods": ["GET"]}, {"Paths": ["/a"]}, {"Headers": {"X": "y"}}, {"Identity": "https://a/.default"}, {"Requests": 5}):
        assert Network.rules([{"Host": "a.test"} | key]).is_inspected
    assert not Network.rules([{"Host": "a.test", "Addresses": ["10.0.0.0/8"], "Megabytes": 5, "Connections": 2}]).is_inspected


def test_a_network_shows_its_rules_without_the_values_of_headers() -> None:
    network = Network.rules(
        [{**GITHUB, "Headers": {"Authorization": "Bearer hidden-value"}}, {"Host": "a.test"}], secrets={"github": "also-hidden"}
    )
    assert network.described == ("api.github.com (GET /repos/**; the host adds Authorization)", "a.test")
    assert "hidden" not in f"{network!r} {network} {network.hosts[0]!r} {network.described}"
    assert network.hosts[0].sets == ("authorization",)


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({}, "got no Host"),
        ({"host": "a.test"}, "got 'host'"),
        ({"Host": "a.test", "Path": ["/a"]}, "got 'Path'"),
        ({"Host": "user:password@a.test"}, "got 'a.test'"),
        ({"Host": "https://a.test"}, "expected a domain"),
        ({"Host": "a.*.test"}, "expected a domain"),
        ({"Host": "a.test:0"}, "expected a domain"),
        ({"Host": "a.test:65536"}, "expected a domain"),
        ({"Host": 5}, "expected a domain"),
        ({"Host": "a.test", "Methods": ["get"]}, "Methods of a.test"),
        ({"Host": "a.test", "Methods": ["CONNECT"]}, "Methods of a.test"),
        ({"Host": "a.test", "Methods": ["TRACE"]}, "Methods of a.test"),
        ({"Host": "a.test", "Paths": ["repos"]}, "Paths of a.test"),
        ({"Host": "a.test", "Paths": ["/a?b"]}, "Paths of a.test"),
        ({"Host": "a.test", "Paths": ["/a/../b"]}, "Paths of a.test"),
        ({"Host": "a.test", "Paths": ["/**/**/**"]}, "at most twice"),
        ({"Host": "a.test", "Paths": ["/a*b*c*d"]}, "Paths of a.test"),
        ({"Host": "a.test", "Paths": ["/a*b**"]}, "Paths of a.test"),
        ({"Host": "a.test", "Paths": ["/a**b*"]}, "Paths of a.test"),
        ({"Host": "a.test", "Headers": {"Host": "hidden"}}, "'Host' is invalid or cannot be set"),
        ({"Host": "a.test", "Headers": {"Transfer-Encoding": "hidden"}}, "is invalid or cannot be set"),
        ({"Host": "a.test", "Headers": {"X: y": "hidden"}}, "is invalid or cannot be set"),
        ({"Host": "a.test", "Headers": {"X": "hidden\r\nY: z"}}, "the value of X"),
        ({"Host": "a.test", "Headers": {"X": "hidden ${SECRET}"}}, "refer to secrets"),
        ({"Host": "a.test", "Headers": {"X": "${secret:unknown}"}}, "'unknown' is not known"),
        ({"Host": "a.test", "Headers": {"authorization": "hidden"}, "Identity": "s"}, "without a header"),
        ({"Host": "a.test", "Addresses": ["10.0.0.1/8"]}, "Addresses of a.test"),
        ({"Host": "a.test", "Requests": 0}, "Requests must be"),
        ({"Host": "a.test", "Megabytes": -1}, "Megabytes must be"),
        ({"Host": "a.test", "Connections": True}, "Connections must be"),
    ],
)
def test_an_invalid_rule_is_refused_without_showing_values_of_headers(rule: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Network.rules([rule])
    assert said in str(refused.value)
    assert "hidden" not in str(refused.value)
    assert "password" not in str(refused.value)


def test_limits_must_be_positive() -> None:
    with pytest.raises(ConfigurationError, match="Requests must be a positive number, got 0"):
        NetworkLimits(requests=0)
    with pytest.raises(ConfigurationError, match="at least one rule"):
        Network.rules([])


@pytest.mark.parametrize(
    ("answer", "decision"),
    [
        (True, "once"),
        ("once", "once"),
        ("always", "always"),
        (False, "refuse"),
        (None, "refuse"),
        ("yes", "refuse"),
        (1, "refuse"),
        ([], "refuse"),
    ],
)
async def test_only_a_clear_yes_allows_a_denial(answer: object, decision: str) -> None:
    async def later(_denial: Denial) -> object:
        return answer

    denial = Denial(host="a.test", port=443, method="POST", path="/x")
    assert await decide(lambda _: answer, denial) == decision  # type: ignore[arg-type, return-value]
    assert await decide(later, denial) == decision  # type: ignore[arg-type]
    assert str(denial) == "POST a.test/x"
    assert str(Denial(host="a.test", port=8443)) == "a connection to a.test:8443"
