"""The routes of sessions (get, list, end, packages, checkpoints, branches), and of the server's health, isolation and metrics."""

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ..contract import extensions, flat
from ..contract.records import ExecutionResponse, ProblemError
from ..contract.versions import VERSIONS
from ..hosting import METRICS_PATH, Hosting
from ..ledger import format_position
from ..models import SessionInfo
from ..network.rules import Network, Rule, is_address, split_host
from ..sandbox.proxy.addresses import is_public
from ..sandbox.sandbox import Sandbox
from .file_routes import OwningResponse
from .hosted_session import GivenNetwork, HostedSession
from .moved_sessions import MovedSessions
from .routing import Routes, check_has_sessions, read_address, read_after_number, read_json, read_skip, set_audit_event
from .sessions import Sessions

LIVE_PATH, READY_PATH = "livez", "readyz"
_MAX_REQUEST = 64 << 10
_MAX_NETWORK = 2 << 20
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


class SessionRoutes:
    """The handlers of requests about the sessions of one server, such as to describe, list and end them, and about its health.

    These requests do not restart a session's cool-down, the time without use after which it ends.
    """

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._hosting = hosting

    def routes(self) -> Routes:
        """Return the routes of sessions: those of Azure's API, the health check and the probes.

        Add the extensions (isolation report, names, history) and the metrics, if the server offers them.
        """
        return [
            (extensions.HEALTH_PATH, "GET", self.health),
            (LIVE_PATH, "GET", self.live),
            (READY_PATH, "GET", self.ready),
            *([] if self._hosting.plain else [(extensions.ISOLATION_PATH, "GET", self.isolation)]),
            *([] if self._hosting.metrics is None else [(METRICS_PATH, "GET", self.metrics)]),
            *([] if self._hosting.plain else [(extensions.NAME_PATH, "PUT", self.rename)]),
            *([] if self._hosting.plain or self._hosting.shell else [(extensions.HISTORY_PATH, "GET", self.get_history)]),
            ("session", "GET", self.get_session),
            ("session", "DELETE", self.delete_session),
            ("listSessions", "GET", self.list_sessions),
            ("metadata", "GET", self.metadata),
            (".management/getSession", "POST", self.get_managed_session),
            (".management/listSessions", "POST", self.list_managed_sessions),
            (".management/stopSession", "POST", self.stop_session),
        ]

    async def health(self, _request: Request) -> Response:
        """Return whether new sessions can be opened, how many sessions there are, and how many there may be.

        The status is 503 if none can be opened.
        """
        status = self._status()
        body = extensions.encode_health(len(self._sessions), self._sessions.most, status=status)
        return JSONResponse(body, 200 if status == "healthy" else 503)

    async def live(self, _request: Request) -> Response:
        """Return 200 as long as this process handles requests.

        It returns 200 even while the server drains, because an orchestrator must not restart it then.
        """
        return JSONResponse({"status": "alive"})

    async def ready(self, _request: Request) -> Response:
        """Return 200 if new sessions can be opened. Return 503 if not: the server is about to stop, or its fork server has died."""
        status = self._status()
        return JSONResponse({"status": status}, 200 if status == "healthy" else 503)

    def _status(self) -> str:
        return "draining" if self._sessions.draining else "healthy" if self._sessions.healthy else "unhealthy"

    async def isolation(self, _request: Request) -> Response:
        """Return the report on how sessions are isolated from this host.

        The first request checks the host. Later requests get the same report.
        """
        return JSONResponse(await self._isolation())

    async def metrics(self, _request: Request) -> Response:
        """Return the metrics of this process, in Prometheus's text format. They contain no names of sessions."""
        if self._hosting.metrics is None:
            raise ProblemError(404, "NotFound", "this server has no metrics: start it with --metrics")
        return Response(await to_thread.run_sync(self._hosting.metrics), media_type=_PROMETHEUS)

    async def get_session(self, request: Request) -> Response:
        """Return the description of a session.

        The request does not restart the session's cool-down, the time without use after which it ends.
        """
        session = self._sessions.find(self._read_identifier(request))
        return JSONResponse(self._encode(request, self._sessions.describe(session)), headers={"x-ms-session-etag": session.etag})

    async def delete_session(self, request: Request) -> Response:
        """End a session. If a caller continues to use its identifier, the state of the next result reports the cause.

        The cause is `expired` if the header `x-aca-sessions-cause` has that value, which a pool sends when it ends an idle session.
        Otherwise it is `terminated`. If the header is absent, the saves of the session are deleted with it.
        """
        given = None if self._hosting.plain else request.headers.get(extensions.CAUSE_HEADER)
        saved = given in ("expired", "closed")
        await self._sessions.delete(self._read_identifier(request), "expired" if given == "expired" else "terminated", saved=saved)
        return Response(status_code=204)

    async def list_sessions(self, request: Request) -> Response:
        """Return a page of at most 300 sessions of this server, beginning at the query's `skip`."""
        check_has_sessions(request)
        shown = [self._encode(request, info) for info in self._sessions.describe_page(read_skip(request))]
        return JSONResponse({"sessions": shown})

    def _encode(self, request: Request, info: SessionInfo) -> dict[str, object]:
        """Encode a session's description, with what the session does now if the request asks for that."""
        full = not self._hosting.plain and request.headers.get(extensions.RICH_REQUEST_HEADER) == "1"
        return flat.encode_session(info) | (_encode_live(info) if full else {})

    async def rename(self, request: Request) -> Response:
        """Set a session's display name, replacing an earlier one, or remove it. The session's identifier stays the same."""
        name = extensions.decode_session_name(await read_json(request, _MAX_REQUEST))
        session = self._sessions.find(read_address(request, plain=False)[1])
        session.name = name
        return JSONResponse({"name": name})

    async def get_history(self, request: Request) -> Response:
        """Return the cells of a session with numbers above the query's `after`, each with source, events and result.

        Also return the session's ledger, the list of what happened to it. Results that are read here do not count as fetched. Reading
        restarts the session's cool-down: a page that shows the session reads now and then.
        """
        version, identifier = read_address(request, plain=False)
        session = self._sessions.find(identifier)
        session.touch()
        executions = session.executions
        found, gone = executions.read_history(read_after_number(request))
        cells = []
        for one in found:
            result = executions.result_in_history(one)
            seen = ExecutionResponse(id=one.id, identifier=identifier, status=one.status, asynchronous=one.call.asynchronous, result=result)
            events = one.events.read_all() if one.done.is_set() else []
            marks = {"transactional": one.call.transactional, "interrupted": one.cancelled.is_set()}
            cell = extensions.encode_past_cell(one.number, one.call.code, events, **marks)
            cell[extensions.EXECUTION_MEMBER] = version.dialect.encode_execution(seen, one.call.output_limit, full=True)
            cells.append(cell)
        entries = session.ledger.record(0, session.ledger.position, session.ledger.position)
        body = extensions.encode_history(cells, entries, accepted=executions.accepted_count, gone=gone)
        return JSONResponse(body | extensions.encode_questions(*await executions.question_numbers()))

    async def metadata(self, request: Request) -> Response:
        """Return the Python version and the packages of sessions. A server with extensions adds the isolation report."""
        check_has_sessions(request)
        body = flat.encode_metadata(*await self._sessions.environment())
        if not self._hosting.plain:
            body[extensions.RICH_MEMBER] = {"isolation": await self._isolation()}
        return JSONResponse(body)

    async def get_managed_session(self, request: Request) -> Response:
        """Return the description of a session, in the format of Azure's management API."""
        session = self._sessions.find(read_address(request, plain=self._hosting.plain)[1])
        return JSONResponse(flat.encode_managed_session(self._sessions.describe(session)))

    async def list_managed_sessions(self, request: Request) -> Response:
        """Return a page of the server's sessions, in the format of Azure's management API."""
        _ = VERSIONS[request.query_params.get("api-version", "")]  # raises for an api-version that is not served
        skip = read_skip(request)
        infos, total = self._sessions.describe_page(skip), len(self._sessions)
        return JSONResponse(flat.encode_managed_sessions(infos, total, skip, str(request.url.replace(query=""))))

    async def stop_session(self, request: Request) -> Response:
        """Refuse to stop a session: raise ProblemError (400).

        Azure stops only sessions of custom containers by this request. Sessions of code interpreters are ended by `delete_session`.
        """
        read_address(request, plain=self._hosting.plain)
        said = "a code interpreter's session cannot be stopped by this request: end it with DELETE session"
        raise ProblemError(400, "SessionRequestNotSupported", said)

    async def _isolation(self) -> dict[str, object]:
        report = await self._sessions.isolation()
        parts, missing = ({one.name: one.how for one in report.findings if one.enforced is enforced} for enforced in (True, False))
        return extensions.encode_isolation(report.level, parts, missing, self._sessions.network)

    def _read_identifier(self, request: Request) -> str:
        check_has_sessions(request)
        return read_address(request, plain=self._hosting.plain)[1]


def _encode_live(info: SessionInfo) -> dict[str, object]:
    return {extensions.RICH_MEMBER: extensions.encode_activity(info, (datetime.now(UTC) - info.last_used).total_seconds())}


class NetworkRoutes:
    """The handlers that give a network to a session, and list what its network refused."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._hosting = hosting

    def routes(self) -> Routes:
        """Return the routes, which are an extension. A server without extensions (`plain`) has none."""
        path = extensions.NETWORK_PATH
        return [] if self._hosting.plain else [(path, "PUT", self.set_network), (path, "GET", self.get_refused)]

    async def get_refused(self, request: Request) -> Response:
        """Return the requests that the network of a session refused, the latest first. Those to one host are counted together."""
        session = self._sessions.find(read_address(request, plain=False)[1])
        return JSONResponse(extensions.encode_refused(session.network.recorder.refused()))

    async def set_network(self, request: Request) -> Response:
        """Give a network to a session. If the session does not exist, start it with this network.

        Later requests name the network by its version. If the session began again without the network, they get the status 428, and no cell
        is run.
        """
        identifier = read_address(request, plain=False)[1]
        version, network = extensions.decode_network(await read_json(request, _MAX_NETWORK))
        self._check_allowed(network)
        request.state.session = await self._sessions.set_network(identifier, GivenNetwork(network, version))
        set_audit_event(request, "network_given", kind=network.kind, rules=len(network.hosts))
        return JSONResponse({"version": version})

    def _check_allowed(self, network: Network) -> None:
        """Raise ProblemError if this server does not accept such a network from clients. Accept every network that reaches nothing."""
        if not network.is_proxied:
            return
        if not self._sessions.has_namespaces:
            said = "rules need a session with namespaces: set ACASessions:Sandbox:Isolation of this server to full"
            raise ProblemError(409, "NetworkFixed", said)
        if not self._hosting.session_rules and not self._sessions.has_host_network:
            said = (
                "this server does not accept networks from clients: start it with --session-rules, or set ACASessions:Sandbox:Network there"
            )
            raise ProblemError(403, "NetworkNotAllowed", said)
        if not self._hosting.session_addresses and (private := next(filter(_leads_inside, network.hosts), None)):
            said = (
                f"rules of clients must be for public addresses, got one for {private.host!r:.80} that allows others: "
                "remove the rule, or write it in ACASessions:Sandbox:Network of the server"
            )
            raise ProblemError(403, "NetworkNotAllowed", said)


def _leads_inside(rule: Rule) -> bool:
    """Return whether a rule lets sessions reach addresses that are not public."""
    host = split_host(rule.host)[0]
    return bool(rule.reachable) or (is_address(host) and not is_public(host))


class PackageRoutes:
    """The handlers that list, install and remove packages in the sessions of one server."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._hosting = hosting

    def routes(self) -> Routes:
        """Return the routes of packages, all of them extensions. A server without extensions (`plain`) has none."""
        path = extensions.PACKAGES_PATH
        if self._hosting.plain:
            return []
        return [(path, "GET", self.list_packages), (path, "POST", self.install), (path, "DELETE", self.uninstall)]

    async def list_packages(self, request: Request) -> Response:
        """Return the names and versions of the packages that were installed in a session."""
        sandbox = await self._session(request).sandbox()
        return JSONResponse(extensions.encode_packages(sandbox.packages.installed))

    async def install(self, request: Request) -> Response:
        """Install packages in a session, except those that it has already. Return the outcome in the form of a cell's result."""
        requirements, timeout = extensions.decode_install_request(await read_json(request, _MAX_REQUEST))
        session = self._session(request)
        with session.keep_in_use():
            sandbox = await session.sandbox()
            session.has_state = True
            result = await sandbox.packages.install(requirements, timeout=timeout)
            session.saves.note_change()
        set_audit_event(request, "install", requirements=len(requirements), success=result.success)
        return JSONResponse(extensions.encode_package_result(result))

    async def uninstall(self, request: Request) -> Response:
        """Remove packages that were installed in a session. Return the outcome in the form of a cell's result."""
        names = request.query_params.get("names", "").split(",")
        session = self._session(request)
        with session.keep_in_use():
            sandbox = await session.sandbox()
            result = await sandbox.packages.uninstall(names)
            session.saves.note_change()
        set_audit_event(request, "uninstall", requirements=len(names), success=result.success)
        return JSONResponse(extensions.encode_package_result(result))

    def _session(self, request: Request) -> HostedSession:
        _, identifier = read_address(request, plain=False)
        session = self._sessions.get(identifier)
        request.state.session = session
        return session


class CheckpointRoutes:
    """The handlers of requests about checkpoints, rollbacks and branches, for the sessions of one server."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._plain = hosting.plain or hosting.shell

    def routes(self) -> Routes:
        """Return the routes of checkpoints, rollbacks and branches, all of them extensions.

        A server without extensions (`plain`) and a pool of shells have none.
        """
        if self._plain:
            return []
        return [
            (extensions.CHECKPOINTS_PATH, "POST", self.take_checkpoint),
            (extensions.CHECKPOINTS_PATH, "GET", self.list_checkpoints),
            (extensions.CHECKPOINT_PATH, "DELETE", self.drop_checkpoint),
            (extensions.ROLLBACK_PATH, "POST", self.roll_back),
            (extensions.BRANCHES_PATH, "POST", self.branch),
        ]

    async def take_checkpoint(self, request: Request) -> Response:
        """Take a checkpoint of a session and return its description.

        The response also has what happened to the session since the position that the caller names: the checkpoint has the state after it.
        """
        asked = await read_json(request, _MAX_REQUEST, default=b"{}")
        name = extensions.decode_checkpoint_name(asked, "name")
        durable = extensions.decode_durable(asked, stores=self._sessions.saved is not None)
        session = self._session(request)
        with session.keep_in_use():
            checkpoint = await session.checkpoints.take(name, durable=durable)
        ledger, here = session.ledger, session.ledger.position
        unreported = ledger.state_and_record(request.headers.get(extensions.SINCE_HEADER), here, here, default=ledger.fetched)
        return JSONResponse(extensions.encode_checkpoint(checkpoint) | extensions.encode_unreported(*unreported))

    async def list_checkpoints(self, request: Request) -> Response:
        """Return the checkpoints of a session, the oldest first."""
        session = self._session(request)
        with session.keep_in_use():
            return JSONResponse(extensions.encode_checkpoints(await session.checkpoints.list()))

    async def drop_checkpoint(self, request: Request) -> Response:
        """Remove a checkpoint of a session."""
        session, id = self._session(request), request.path_params["id"]
        with session.keep_in_use():
            await session.checkpoints.drop(id)
        return Response(status_code=204)

    async def roll_back(self, request: Request) -> Response:
        """Roll a session back to a checkpoint, by default the latest, and return the description of that checkpoint.

        The response also has the position of the entry for this rollback in the session's ledger, the list of what happened to it. It has
        none if the checkpoint was restored from the store: then the next result reports the rollback.
        """
        asked = await read_json(request, _MAX_REQUEST, default=b"{}")
        id, name = extensions.decode_checkpoint_name(asked, "id"), extensions.decode_checkpoint_name(asked, "name")
        session = self._session(request)
        with session.keep_in_use():
            checkpoint, position = await session.checkpoints.roll_back(id, name)
            session.saves.note_change()
        body = extensions.encode_checkpoint(checkpoint)
        return JSONResponse(body | ({} if position is None else extensions.encode_position(session.ledger.id, position)))

    async def branch(self, request: Request) -> Response:
        """Create sessions that continue from the state of an existing one, with the identifiers in the request: all of them, or none.

        Return the position at which the ledger of each new session begins, and the entries of the existing session's ledger that the caller
        has not received yet. A ledger is the list of what happened to a session.
        """
        identifiers, reseed = extensions.decode_branch_request(await read_json(request, _MAX_REQUEST, default=b"{}"))
        session = self._session(request)
        branches: list[HostedSession] = []

        async def create_branches(sandbox: Sandbox) -> None:
            branches.extend(await self._sessions.branch(sandbox, identifiers, session.network, reseed=reseed))

        with session.keep_in_use():
            try:
                await session.executions.run_in_turn(create_branches)
            except asyncio.CancelledError:  # they are made anyway, and no caller would end them
                session.executions.schedule_in_turn(lambda _sandbox: self._sessions.end_branches(branches))
                raise
        here = session.ledger.position
        _, record = session.ledger.state_and_record(
            request.headers.get(extensions.SINCE_HEADER), here, here, default=session.ledger.fetched
        )
        positions = {branch.identifier: format_position(branch.ledger.id, branch.ledger.position) for branch in branches}
        return JSONResponse(extensions.encode_branch_response(record, positions))

    def _session(self, request: Request) -> HostedSession:
        session = request.state.session = self._sessions.get(read_address(request, plain=False)[1])
        return session


class SaveRoutes:
    """The handlers of requests about exported sessions, and about saved ones if the server has a store."""

    def __init__(self, sessions: Sessions, hosting: Hosting) -> None:
        self._sessions = sessions
        self._moved = MovedSessions(sessions, max_bytes=hosting.max_save)
        self._max_request = hosting.max_request
        self._offered = not (hosting.plain or hosting.shell)

    def routes(self) -> Routes:
        """Return the routes of saved and exported sessions, all of them extensions."""
        if not self._offered:
            return []
        moved: Routes = [(extensions.EXPORT_PATH, "POST", self.export), (extensions.IMPORT_PATH, "POST", self.import_)]
        if self._sessions.saved is None:
            return moved
        return [
            *moved,
            (extensions.SAVE_PATH, "POST", self.save),
            (extensions.SAVE_PATH, "DELETE", self.forget),
            (extensions.SAVED_PATH, "GET", self.list),
        ]

    async def export(self, request: Request) -> Response:
        """Return a session as bytes that can be imported elsewhere. The request's body is a notebook for them, or empty."""
        identifier = read_address(request, plain=False)[1]
        notebook = await read_json(request, self._max_request, default=b"null")
        async with AsyncExitStack() as resources:
            session = request.state.session = self._sessions.get(identifier)
            resources.enter_context(session.keep_in_use())
            encoded = json.dumps(notebook).encode() if notebook is not None else b""
            exporting = self._moved.export(session, encoded, request.headers.get(extensions.SINCE_HEADER))
            chunks = await resources.enter_async_context(exporting)
            set_audit_event(request, "export")
            return OwningResponse(chunks, 200, {}, media_type="application/octet-stream", resources=resources.pop_all())

    async def import_(self, request: Request) -> Response:
        """Begin a session from the bytes of an exported one, and return what was restored."""
        identifier = read_address(request, plain=False)[1]
        saved = await self._moved.import_(identifier, request.stream(), request.is_disconnected)
        request.state.session = self._sessions.find(identifier)
        set_audit_event(request, "import", bytes=saved.size)
        return JSONResponse(extensions.encode_saved(saved))

    async def save(self, request: Request) -> Response:
        """Save a session between two cells, and return what was saved."""
        session = request.state.session = self._sessions.get(read_address(request, plain=False)[1])
        with session.keep_in_use():
            return JSONResponse(extensions.encode_saved(await session.saves.save()))

    async def forget(self, request: Request) -> Response:
        """Delete the saves of a session."""
        await self._sessions.forget(read_address(request, plain=False)[1])
        return Response(status_code=204)

    async def list(self, _request: Request) -> Response:
        """Return the saved sessions."""
        return JSONResponse(extensions.encode_saved_list(await self._sessions.list_saved()))
