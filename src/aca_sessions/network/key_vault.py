"""Read secrets of Azure Key Vault by its REST API."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..errors import ConfigurationError, SecretError

if TYPE_CHECKING:
    import httpx

# The end of a vault's host name in each of Azure's clouds, and the scope of tokens for it. A token is sent to no other host.
_CLOUDS = {
    ".vault.azure.net": "https://vault.azure.net/.default",
    ".vault.azure.cn": "https://vault.azure.cn/.default",
    ".vault.usgovcloudapi.net": "https://vault.usgovcloudapi.net/.default",
}
_NAME = re.compile(r"[a-z0-9-]{1,64}", re.ASCII)
_PATH = re.compile(r"/secrets/[0-9A-Za-z-]{1,127}(/[0-9A-Za-z]{1,64})?/?", re.ASCII)
_VERSION = "7.4"
_LARGEST = 1 << 17  # bytes of a response: a secret has at most 25 KB
_REMEDIES = {
    401: "sign in with an identity of the vault's tenant",
    403: "give this program's identity the role Key Vault Secrets User, and let the vault's firewall admit it",
    404: "the vault has no such secret, or no such version",
}


@dataclass(frozen=True, slots=True)
class VaultSecret:
    """Where a secret is: its URL, and the scope of the token that reads it."""

    url: str
    scope: str

    @classmethod
    def parse(cls, url: str) -> "VaultSecret":
        """Parse the identifier of a secret. Raise ConfigurationError if it is invalid, so that no token goes to another host."""
        try:
            parts = urlsplit(url.strip())
            vault, dot, rest = parts.netloc.lower().partition(".")
        except ValueError:  # brackets of an IPv6 address
            parts, vault, dot, rest = urlsplit(""), "", "", ""
        scope = _CLOUDS.get(dot + rest)
        if (
            parts.scheme != "https"
            or not scope
            or not _NAME.fullmatch(vault)
            or not _PATH.fullmatch(parts.path)
            or parts.query + parts.fragment
        ):
            # The error does not show the URL: it may be a secret that was pasted by mistake.
            raise ConfigurationError(
                "the URL of a secret in Key Vault must be https://VAULT.vault.azure.net/secrets/NAME, and may end with /VERSION "
                f"(other clouds: {', '.join(list(_CLOUDS)[1:])})"
            )
        return cls(f"https://{vault}{dot}{rest}{parts.path.rstrip('/')}", scope)

    async def read(
        self,
        get_token: Callable[[str], Awaitable[str]],
        forget_token: Callable[[str, str], None],
        transport: "httpx.AsyncBaseTransport | None",
    ) -> str:
        """Return the secret. Raise SecretError, with the reason, if the vault does not return it.

        Args:
            get_token: Returns a token for a scope.
            forget_token: Called with the scope and the token that the vault refused.
            transport: The transport of httpx, or None for the usual one.
        """
        import httpx

        token, status, body = await get_token(self.scope), 0, b""
        try:
            # Redirects are not followed: the token is for this host only.
            async with (
                httpx.AsyncClient(transport=transport, timeout=10) as client,
                client.stream(
                    "GET",
                    self.url,
                    params={"api-version": _VERSION},
                    headers={"authorization": f"Bearer {token}", "accept-encoding": "identity"},
                ) as response,
            ):
                status = response.status_code
                async for part in response.aiter_raw(1 << 16):
                    body += part
                    if len(body) > _LARGEST:
                        break
        except (httpx.HTTPError, OSError) as error:
            problem = f"Key Vault cannot be reached ({type(error).__name__}): check the name of the vault and its firewall"
        else:
            if status == 401:
                forget_token(self.scope, token)
            problem = _REMEDIES.get(status, "try again later") if status != 200 else ""
            problem = problem and f"Key Vault answered {status}: {problem}"
        if problem:
            raise SecretError(problem)
        return _value_in(body)


def _value_in(body: bytes) -> str:
    import json

    try:
        value = json.loads(body)["value"]
    except (ValueError, TypeError, KeyError, RecursionError):
        value = None
    if not isinstance(value, str):
        del value, body  # tools that show the variables of a traceback would show them
        raise SecretError("the response is not one of Key Vault: check what answers at its address")
    return value
