"""Test secrets: where they come from, when they are read again, who shares a read, and that nothing shows them."""

import asyncio
import contextlib
import copy
import dataclasses
import json
import logging
import os
import pickle
import ssl
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import httpx
import pytest
import uvicorn
from pydantic import BaseModel, ConfigDict, TypeAdapter
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from aca_sessions.errors import ConfigurationError, MissingExtraError, SecretError
from aca_sessions.network import secrets
from aca_sessions.network.calls import SharedCalls
from aca_sessions.network.secrets import LARGEST, Secret, SecretStore

from ..client.test_auth import Clock, Credential, SyncCredential
from ..client.test_certificates import write_certificate

VALUE = "ghp_the-value-of-the-secret"
VAULT = "https://v.vault.azure.net/secrets/db"


async def refusal(store: SecretStore, name: str = "one") -> SecretError:
    """Return the error of a secret that cannot be read, after a look that neither it nor anything it leads to has the value."""
    with pytest.raises(SecretError) as raised:
        await store.get(name)
    error = raised.value
    assert VALUE not in "".join(traceback.format_exception(error))
    assert (error.__cause__, error.__context__) == (None, None)
    assert repr(name) in str(error)
    return error


# --- sources ---


async def test_an_environment_variable_is_read_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SecretStore({"one": Secret.environment("MY_TOKEN")})
    assert "the environment variable MY_TOKEN is not set" in str(await refusal(store))
    monkeypatch.setenv("MY_TOKEN", "first")
    assert await store.get("one") == "first"
    monkeypatch.setenv("MY_TOKEN", "second")
    assert await store.get("one") == "second"
    assert store.values() == ("first", "second")


async def test_a_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("  first\n")
    store = SecretStore({"one": Secret.file("token")})
    assert await store.get("one") == "first"
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns + 5_000_000_000, times.st_mtime_ns))
    assert await store.get("one") == "first"
    other = tmp_path / "other"  # as Kubernetes and vaults replace a file
    other.write_text("second")
    other.rename(path)
    assert await store.get("one") == "second"
    path.unlink()
    assert str(await refusal(store)) == f"the secret 'one': {path} cannot be read: No such file or directory"


@pytest.mark.parametrize("kind", ["folder", "pipe", "large"])
async def test_a_file_that_is_none_is_refused_without_waiting_for_it(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "token"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case _:
            path.write_text(VALUE * 1000)
    expected = "must have at most 16384 bytes, has 27000" if kind == "large" else "must be a file"
    assert expected in str(await refusal(SecretStore({"one": Secret.file(path)})))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("", "must not be empty"),
        (f"{VALUE}\r\nx-other: 1", "without line breaks"),
        (f"{VALUE}\n", "without line breaks"),
        (f"{VALUE}\0", "printable"),
        (f"{VALUE}é", "printable ASCII"),
        (VALUE * 1000, "must have at most 16384 characters, has 27000"),
        (None, "must be text, got NoneType"),
        (VALUE.encode(), "must be text, got bytes"),
    ],
)
async def test_a_value_that_a_header_cannot_hold_is_refused_and_not_shown(value: Any, problem: str) -> None:
    assert problem in str(await refusal(SecretStore({"one": lambda: value})))
    if isinstance(value, str):
        for given in (value, Secret.value(value)):
            with pytest.raises(SecretError, match=problem) as raised:
                SecretStore({"one": given})
            assert VALUE not in str(raised.value)
    assert await SecretStore({"one": "x" * LARGEST}).get("one") == "x" * LARGEST


def test_a_store_refuses_other_names_and_other_things() -> None:
    for given in ({"a b": VALUE}, {"": VALUE}, {"x" * 101: VALUE}, {"one": 5}, {"one": {"Environment": "X"}}):
        with pytest.raises(ConfigurationError) as raised:
            SecretStore(given)
        assert VALUE not in str(raised.value)


async def test_a_secret_that_is_not_defined_is_named_with_those_that_are() -> None:
    error = await refusal(SecretStore({"github": VALUE, "db": VALUE}), "gihub")
    assert "(defined: github, db): add it to ACASessions:Secrets" in str(error)


async def test_a_keyring_is_read_in_a_thread_and_kept_for_a_minute(tmp_path: Path) -> None:
    keyring = pytest.importorskip("keyring", reason="the extra keyring is not installed")
    from keyring.backend import KeyringBackend

    file, threads = tmp_path / "keyring.json", []

    class FileKeyring(KeyringBackend):
        """A backend that keeps its entries in a file."""

        priority = 1

        def get_password(self, service: str, username: str) -> str | None:
            threads.append(threading.current_thread())
            return json.loads(file.read_text()).get(f"{service}/{username}")

        def set_password(self, service: str, username: str, password: str) -> None:
            file.write_text(json.dumps({f"{service}/{username}": password}))

        def delete_password(self, service: str, username: str) -> None:
            file.write_text("{}")

    before, clock = keyring.get_keyring(), Clock()
    keyring.set_keyring(FileKeyring())
    try:
        keyring.set_password("github", "me", VALUE)
        store = SecretStore({"one": Secret.keyring("github", "me"), "two": Secret.keyring("github", "you")}, clock=clock)
        assert [await store.get("one") for _ in range(2)] == [VALUE, VALUE]
        assert len(threads) == 1
        assert threads[0] is not threading.current_thread()
        assert "the keyring has no entry for 'github' and 'you': run `keyring set" in str(await refusal(store, "two"))
        keyring.set_password("github", "me", "changed")
        clock.now += 60
        assert await store.get("one") == "changed"
        file.write_text(f"{VALUE} is not JSON")
        clock.now += 60
        assert "the keyring cannot be read (JSONDecodeError)" in str(await refusal(store))
    finally:
        keyring.set_keyring(before)


async def test_a_keyring_without_its_library_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)  # Python then raises what it raises for a missing module
    with pytest.raises(MissingExtraError, match=r"aca-sessions-core\[keyring\]"):
        await SecretStore({"one": Secret.keyring("a", "b")}).get("one")


# --- functions ---


class Counted:
    """A function of a secret that counts its calls, and can wait and fail."""

    def __init__(self) -> None:
        self.calls, self.error, self.go, self.begun = 0, None, asyncio.Event(), asyncio.Event()
        self.go.set()

    async def __call__(self) -> str:
        self.calls += 1
        self.begun.set()
        await self.go.wait()
        if self.error:
            raise self.error
        return f"value-{self.calls}"


async def test_a_function_is_called_again_after_half_a_minute() -> None:
    function, clock = Counted(), Clock()
    store = SecretStore({"one": function}, clock=clock)
    assert [await store.get("one") for _ in range(3)] == ["value-1"] * 3
    clock.now += 30
    assert await store.get("one") == "value-2"
    clock.now -= 3600  # the clock was set back
    assert await store.get("one") == "value-3"
    assert store.values() == ("value-1", "value-2", "value-3")


async def test_a_function_that_is_not_async_runs_in_a_thread_and_may_return_an_awaitable() -> None:
    threads = []

    async def later() -> str:
        threads.append(threading.current_thread())
        return "later"

    def now() -> str:
        threads.append(threading.current_thread())
        return "now"

    store = SecretStore({"now": now, "later": lambda: later(), "partial": partial(later)})
    assert [await store.get(name) for name in ("now", "later", "partial")] == ["now", "later", "later"]
    own = threading.current_thread()
    assert [thread is own for thread in threads] == [False, True, True]


async def test_callers_at_the_same_time_share_a_call() -> None:
    function = Counted()
    function.go.clear()
    store = SecretStore({"one": function})
    callers = [asyncio.create_task(store.get("one")) for _ in range(20)]
    await function.begun.wait()
    function.go.set()
    assert await asyncio.gather(*callers) == ["value-1"] * 20


async def test_a_failure_is_shared_and_not_kept() -> None:
    function = Counted()
    function.go.clear()
    function.error = RuntimeError(VALUE)
    store = SecretStore({"one": function})
    callers = [asyncio.create_task(refusal(store)) for _ in range(3)]
    await function.begun.wait()
    function.go.set()
    errors = await asyncio.gather(*callers)
    assert {str(error).partition(" at ")[0] for error in errors} == {"the secret 'one': its function raised RuntimeError"}
    assert "test_secrets.py:" in str(errors[0])
    function.error = None
    assert await store.get("one") == "value-2"


@pytest.mark.parametrize("error", [SystemExit(VALUE), KeyError(VALUE), SecretError(VALUE), ConfigurationError(VALUE)])
async def test_no_error_of_a_function_is_passed_on(error: BaseException) -> None:
    def fail() -> str:
        raise error

    assert f"its function raised {type(error).__name__} at" in str(await refusal(SecretStore({"one": fail})))


async def test_a_cancelled_caller_does_not_cancel_the_call_of_others() -> None:
    function = Counted()
    function.go.clear()
    store = SecretStore({"one": function})
    first, second = (asyncio.create_task(store.get("one")) for _ in range(2))
    await function.begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    function.go.set()
    assert await second == "value-1"


async def test_the_last_caller_may_be_cancelled_and_the_next_one_finds_the_value() -> None:
    function = Counted()
    function.go.clear()
    store = SecretStore({"one": function})
    only = asyncio.create_task(store.get("one"))
    await function.begun.wait()
    only.cancel()
    await asyncio.wait({only})
    assert store.values() == ()  # no caller has it
    function.go.set()
    assert await store.get("one") == "value-1"


async def test_closing_ends_the_calls_that_wait_and_forgets_all_values() -> None:
    function = Counted()
    store = SecretStore({"one": function, "two": "kept-by-its-owner"})
    assert await store.get("one") == "value-1"
    await store.aclose()
    assert store.values() == ()
    function.go.clear()
    function.begun.clear()
    waiting = asyncio.create_task(refusal(store))
    await function.begun.wait()
    await store.aclose()
    assert str(await waiting) == "the secret 'one' cannot be read: its store was closed"
    function.go.set()
    await store.aclose()
    assert [await store.get("one"), await store.get("two")] == ["value-3", "kept-by-its-owner"]  # a store can be used again


async def test_closing_does_not_wait_for_a_thread() -> None:
    begun, go = threading.Event(), threading.Event()

    def block() -> str:
        begun.set()
        go.wait()
        return VALUE

    store = SecretStore({"one": block})
    waiting = asyncio.create_task(refusal(store))
    await asyncio.to_thread(begun.wait)
    await store.aclose()
    await waiting
    go.set()
    assert store.values() == ()


async def test_a_function_that_never_returns_is_given_up_and_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secrets, "PATIENCE", 0.05)
    calls, go = [], threading.Event()

    def block() -> str:
        calls.append(1)
        go.wait()
        return VALUE

    async def never() -> str:
        await asyncio.Event().wait()
        return VALUE

    store = SecretStore({"one": block, "two": never})
    for _ in range(3):
        assert str(await refusal(store)) == "the secret 'one' was not read within 0.05 s: check its source"
    assert calls == [1]  # a thread cannot be cancelled, so that no second one is started
    await refusal(store, "two")
    go.set()
    assert await store.get("one") == VALUE


def test_a_store_serves_several_event_loops_at_the_same_time() -> None:
    calls, both = [], threading.Barrier(2, timeout=30)

    async def slow() -> str:
        calls.append(1)
        both.wait()  # both loops are in a call
        await asyncio.sleep(0)
        return VALUE

    store, found = SecretStore({"one": slow, "two": lambda: "two"}), []

    async def use() -> None:
        found.extend(await asyncio.gather(*(store.get("one") for _ in range(5)), *(store.get("two") for _ in range(5))))

    threads = [threading.Thread(target=asyncio.run, args=(use(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted([VALUE] * 10 + ["two"] * 10)
    assert len(calls) == 2
    asyncio.run(use())  # and one that comes later
    asyncio.run(store.aclose())


async def test_closing_cancels_the_calls_of_another_event_loop() -> None:
    begun, cancelled = threading.Event(), threading.Event()
    calls = SharedCalls()

    async def never() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def use() -> None:
        with contextlib.suppress(BaseException):
            await calls.call("key", never)

    thread = threading.Thread(target=asyncio.run, args=(use(),))
    thread.start()
    await asyncio.to_thread(begun.wait)
    await calls.cancel()
    await asyncio.to_thread(thread.join)
    assert cancelled.is_set()


async def test_a_hundred_values_of_a_secret_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    store = SecretStore({"one": Secret.environment("MY_TOKEN"), "two": "other"})
    await store.get("two")
    for number in range(150):
        monkeypatch.setenv("MY_TOKEN", f"value-{number}")
        await store.get("one")
    monkeypatch.setenv("MY_TOKEN", "value-60")
    await store.get("one")
    assert {*store.values()} == {"other", *(f"value-{number}" for number in range(50, 150))}
    assert store.values()[-2:] == ("other", "value-60")  # the newest of each: only so many of the last ones are masked


# --- templates ---


async def test_secrets_in_a_text_are_replaced_once() -> None:
    store = SecretStore({"user": "me", "password": "${secret:user}$1\\1", "a.b-c_d": "x"})
    assert await store.fill("Basic ${secret:user}:${secret:password}, ${secret:user}") == "Basic me:${secret:user}$1\\1, me"
    assert await store.fill("${secret:a.b-c_d} $ {} ${} ${other:x} costs $5") == "x $ {} ${} ${other:x} costs $5"
    with pytest.raises(SecretError, match="'other' is not defined"):
        await store.fill("${secret:user}${secret:other}")


# --- Azure ---


@dataclass
class KeyVault:
    """A server with the REST API of Key Vault for secrets, and the transport that leads to it."""

    transport: httpx.AsyncBaseTransport
    stored: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    answer: Response | None = None

    async def get(self, request: Request) -> Response:
        self.requests.append(request)
        if self.answer is not None:
            return self.answer
        value = self.stored.get(request.url.path.removeprefix("/secrets/"))
        if value is None:
            return JSONResponse({"error": {"code": "SecretNotFound", "message": f"not {VALUE}"}}, 404)
        return JSONResponse({"value": value, "id": str(request.url), "attributes": {"enabled": True}})


class ToPort(httpx.AsyncHTTPTransport):
    """A transport that connects to a port of this machine, whatever the host's name is. Certificates are checked against the name."""

    def __init__(self, certificate: Path) -> None:
        super().__init__(verify=ssl.create_default_context(cafile=str(certificate)))
        self.port = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        there = httpx.Request(
            request.method,
            request.url.copy_with(host="127.0.0.1", port=self.port),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": request.url.host},
        )
        return await super().handle_async_request(there)


@pytest.fixture
async def vault(tmp_path: Path) -> AsyncIterator[KeyVault]:
    certificate = write_certificate(tmp_path, names=("v.vault.azure.net",))
    transport = ToPort(certificate)
    vault = KeyVault(transport)
    config = uvicorn.Config(
        Starlette(routes=[Route("/{path:path}", vault.get)]), port=0, ssl_certfile=certificate, log_config=None, lifespan="off"
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    running = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    transport.port = server.servers[0].sockets[0].getsockname()[1]
    yield vault
    server.should_exit = True
    await running


def store_of(vault: KeyVault, url: str = VAULT, kind: type = Credential) -> tuple[SecretStore, Credential, Clock]:
    clock = Clock()
    credential = kind(clock)
    return SecretStore({"one": Secret.key_vault(url)}, credential=credential, transport=vault.transport, clock=clock), credential, clock


async def test_a_secret_of_key_vault_is_read_with_a_token_and_kept_for_minutes(vault: KeyVault) -> None:
    vault.stored["db"] = VALUE
    store, credential, clock = store_of(vault)
    assert await asyncio.gather(*(store.get("one") for _ in range(10))) == [VALUE] * 10
    (request,) = vault.requests
    assert request.headers["authorization"] == "Bearer token-1"
    assert request.headers["host"] == "v.vault.azure.net"
    assert dict(request.query_params) == {"api-version": "7.4"}
    assert credential.scopes == ("https://vault.azure.net/.default",)
    vault.stored["db"] = "rotated"
    clock.now += 299
    assert await store.get("one") == VALUE
    clock.now += 1
    assert await store.get("one") == "rotated"
    assert (credential.asked, store.values()) == (1, (VALUE, "rotated"))


async def test_a_version_of_a_secret_is_read(vault: KeyVault) -> None:
    version = "4387e9f3d6e14c459867679a90fd0f79"
    vault.stored |= {f"db/{version}": "old", "db": "new"}
    store, _, _ = store_of(vault, f"{VAULT}/{version}", SyncCredential)
    assert await store.get("one") == "old"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (JSONResponse({"error": {"code": "Forbidden", "message": VALUE}}, 403), "answered 403: give this program's identity the role"),
        (JSONResponse({"error": {"code": "SecretNotFound"}}, 404), "answered 404: the vault has no such secret"),
        (Response(VALUE, 429), "answered 429: try again later"),
        (RedirectResponse("https://elsewhere.example/"), "answered 307"),
        (Response(VALUE), "the response is not one of Key Vault"),
        (JSONResponse([VALUE]), "the response is not one of Key Vault"),
        (JSONResponse({"value": {"a": VALUE}}), "the response is not one of Key Vault"),
        (JSONResponse({"value": f"{VALUE}\n-----"}), "its value must have only printable ASCII characters, without line breaks"),
        (Response(json.dumps({"value": VALUE * 10_000})), "the response is not one of Key Vault"),
    ],
)
async def test_a_refusal_of_key_vault_is_explained(vault: KeyVault, answer: Response, problem: str) -> None:
    vault.answer = answer
    store, _, _ = store_of(vault)
    assert problem in str(await refusal(store))
    assert len(vault.requests) == 1
    vault.answer = None
    vault.stored["db"] = VALUE
    assert await store.get("one") == VALUE  # the failure is not kept


async def test_a_token_that_key_vault_refused_is_not_used_again(vault: KeyVault) -> None:
    vault.stored["db"], vault.answer = VALUE, Response(status_code=401)
    store, _, _ = store_of(vault)
    assert "answered 401: sign in" in str(await refusal(store))
    vault.answer = None
    assert await store.get("one") == VALUE
    assert [request.headers["authorization"] for request in vault.requests] == ["Bearer token-1", "Bearer token-2"]


async def test_a_vault_with_the_certificate_of_another_host_gets_no_token(vault: KeyVault) -> None:
    store, _, _ = store_of(vault, VAULT.replace("/v.", "/w."))
    assert "Key Vault cannot be reached (ConnectError)" in str(await refusal(store))
    assert vault.requests == []


@pytest.mark.parametrize(
    "url",
    [
        "http://v.vault.azure.net/secrets/db",
        "https://v.vault.azure.net.evil.example/secrets/db",
        "https://evil.example/.vault.azure.net/secrets/db",
        "https://evil.example#.vault.azure.net/secrets/db",
        "https://evil.example\\.vault.azure.net/secrets/db",
        "https://me:pw@v.vault.azure.net/secrets/db",
        "https://evil.example@v.vault.azure.net/secrets/db",
        "https://v.vault.azure.net:8443/secrets/db",
        "https://a.v.vault.azure.net/secrets/db",
        "https://.vault.azure.net/secrets/db",
        "https://vault.azure.net/secrets/db",
        "https://v.vault.azure.net/keys/db",
        "https://v.vault.azure.net/secrets/../keys/db",
        "https://v.vault.azure.net/secrets/db?x=1",
        "https://[::1/secrets/db",
        "",
    ],
)
def test_a_url_outside_of_key_vault_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"must be https://VAULT\.vault\.azure\.net/secrets/NAME"):
        Secret.key_vault(url)


def test_the_clouds_of_governments_have_scopes_of_their_own() -> None:
    for end in ("azure.cn", "usgovcloudapi.net"):
        url = f"https://v.vault.{end}/secrets/db"
        assert secrets.VaultSecret.parse(url.upper().replace("/SECRETS/DB", "/secrets/db/").replace("HTTPS", "https")) == (
            secrets.VaultSecret(url, f"https://vault.{end}/.default")
        )


@pytest.mark.parametrize("kind", [Credential, SyncCredential])
async def test_tokens_are_kept_for_each_scope_and_renewed_before_they_expire(kind: type) -> None:
    clock = Clock()
    credential = kind(clock)
    store = SecretStore({}, credential=credential, clock=clock)
    one, two = "https://storage.azure.com/.default", "https://graph.microsoft.com/.default"
    tokens = await asyncio.gather(*(store.token(scope) for scope in (one, two) for _ in range(10)))
    assert credential.asked == 2
    clock.now += 3299
    assert await store.token(one) == tokens[0]
    assert credential.asked == 2
    clock.now += 1
    await store.token(one)
    assert credential.asked == 3
    assert {*store.values()} >= {*tokens}


async def test_a_credential_that_fails_is_explained_without_its_text() -> None:
    credential = Credential(Clock())
    credential.broken = True
    store = SecretStore({"one": Secret.key_vault(VAULT)}, credential=credential)
    with pytest.raises(SecretError) as raised:
        await store.token("https://storage.azure.com/.default")
    problem = "cannot get a token for https://storage.azure.com/.default (RuntimeError)"
    assert str(raised.value) == f"{problem}: sign in (az login), or give this machine a managed identity"
    assert raised.value.__context__ is None
    assert "secret detail" not in str(await refusal(store))


async def test_a_machine_that_is_not_signed_in_gets_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real DefaultAzureCredential, which finds nothing here."""
    pytest.importorskip("azure.identity.aio")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")  # ask nothing on the network
    store = SecretStore({"one": Secret.key_vault(VAULT)})
    with pytest.raises(SecretError, match=r"cannot get a token for https://storage\.azure\.com/\.default \((Client|Credential)"):
        await store.token("https://storage.azure.com/.default")


# --- nothing shows them ---


@dataclass
class Kept:
    one: Any


class Holder(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    secret: Any
    store: SecretStore


async def test_no_text_dump_or_pickle_holds_a_value(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(VALUE)
    given = {"value": VALUE, "call": partial(str, VALUE), "file": Secret.file("token"), "made": Secret.value(VALUE)}
    store = SecretStore(given)
    for name in given:
        assert await store.get(name) == VALUE
    assert store.values() == (VALUE,) * 4
    held = [store, *store._secrets.values(), *store._read.values(), *store._issued.values(), store._calls]
    for one in held:
        shown = [repr(one), str(one), f"{one}", repr(getattr(one, "__dict__", "")), repr(Holder(secret=one, store=store))]
        shown.append(repr(dataclasses.asdict(Kept(one))))
        holder = Holder(secret=one, store=store)
        shown += [repr(holder.model_dump()), repr(TypeAdapter(Any).dump_python(one))]
        for dump in (holder.model_dump_json, partial(to_json, one), partial(json.dumps, one, default=vars)):
            with contextlib.suppress(Exception):
                shown.append(str(dump()))
        for dump in (pickle.dumps, cloudpickle.dumps):
            with contextlib.suppress(Exception):
                shown.append(dump(one).decode("latin-1"))
        assert VALUE not in "\n".join(shown), one
    for one in (store, *store._secrets.values()):
        assert copy.deepcopy(one) is one
        for dump in (pickle.dumps, cloudpickle.dumps):
            with pytest.raises(TypeError, match="cannot be pickled"):
                dump(one)
    assert repr(store) == "<SecretStore: value, call, file, made>"
    assert repr(Secret.call(partial(str, VALUE))) == "Secret.call(…)"
    assert repr(Secret.keyring("github", "me")) == "Secret.keyring('github', 'me')"


@pytest.fixture
def all_logs(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    with caplog.at_level(logging.DEBUG):
        yield lambda: caplog.text


async def test_no_log_holds_a_value_even_if_asyncio_is_debugged(
    vault: KeyVault, tmp_path: Path, all_logs: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "slow_callback_duration", 0)
    loop.set_debug(True)
    (tmp_path / "token").write_text(VALUE)
    vault.stored["db"] = VALUE
    tokens = Credential(Clock())
    monkeypatch.setattr(tokens, "get_token", SyncToken().get_token)
    given = {"file": Secret.file("token"), "call": lambda: VALUE, "async": partial(later, VALUE), "vault": Secret.key_vault(VAULT)}
    store = SecretStore(given, credential=tokens, transport=vault.transport)
    for name in given:
        assert await store.fill(f"Bearer ${{secret:{name}}}") == f"Bearer {VALUE}"
    assert await store.token("https://storage.azure.com/.default") == f"{VALUE}-token"
    for fails in (lambda: 1 / 0 and VALUE, lambda: f"{VALUE}\n"):
        await refusal(SecretStore({"one": fails}))
    loop.set_debug(False)
    assert "Executing <Task finished" in all_logs()
    assert "GET https://v.vault.azure.net/secrets/db" in all_logs()
    assert VALUE not in all_logs()


async def later(value: str) -> str:
    await asyncio.sleep(0)
    return value


class SyncToken:
    def get_token(self, *scopes: str) -> Any:
        from ..client.test_auth import Token

        return Token(f"{VALUE}-token", 1 << 40)
