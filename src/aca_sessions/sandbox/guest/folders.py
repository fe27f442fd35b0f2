"""The paths of a session's data folder and temporary folder: /mnt/data and /tmp, or folders of the host if there are no namespaces.

Also those of the certificates that a session trusts, if its proxy has an authority.
"""

from dataclasses import dataclass

DATA = "/mnt/data"
CERTIFICATES = "/.certificates"
BUNDLE, AUTHORITY = f"{CERTIFICATES}/bundle.pem", f"{CERTIFICATES}/authority.pem"
# For programs that have their own bundle, such as Node.js, or look for one at another path.
CERTIFICATE_VARIABLES = {
    **dict.fromkeys(("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO", "PIP_CERT"), BUNDLE),
    "NODE_EXTRA_CA_CERTS": AUTHORITY,
}


@dataclass
class _Folders:
    data: str = DATA
    temporary: str = "/tmp"


session_folders = _Folders()
