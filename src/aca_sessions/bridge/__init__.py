"""Host calls: how a cell calls `tools`, `skills`, `artifacts` and `deps` of the host.

`guest` is the half in the session, `host` the half outside. Both encode values by `codec`. If an endpoint reports events while a cell runs,
a host call is one of these events. For other endpoints, `threaded_host` sends `threaded_guest` and the modules that it imports to the
session, as text. `codec`, `guest` and `threaded_guest` run in sessions, so they need only Python 3.9, and nothing in them is a security
check.
"""
