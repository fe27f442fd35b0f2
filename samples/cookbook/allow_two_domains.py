"""Allow two domains.

A session has no network by default. `Network.allow` opens HTTP and HTTPS to some
domains, through a proxy that the host runs. The proxy looks up each name and
connects to public addresses only. Libraries find it in the usual environment
variables (`https_proxy`). It does not inspect what is sent, so an allowed domain
that accepts uploads can leak the session's data. `*.example.org` is every domain
below example.org, and `example.org:8443` another port. In settings: `"Sandbox":
{"Network": ["api.github.com", "*.example.org"]}`.
"""

from aca_sessions import InteractiveSession, Network, Policy

TRY = """
import urllib.request
try:
    urllib.request.urlopen("http://pypi.org/")
except OSError as error:
    print(error)
"""

policy = Policy(network=Network.allow("api.github.com", "*.example.org"))
with InteractiveSession(policy=policy) as session:
    print(session.run(TRY))  # pypi.org is not allowed

# prints:
# HTTP Error 403: Forbidden, blocked by this session's network rules: a connection to pypi.org; allowed: the hosts api.github.com, *.example.org
