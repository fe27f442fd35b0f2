"""Install a package from where the host allows it.

The host fetches the package, so the session needs no network. Only wheels are
accepted: nothing is built, and no code of a package runs outside the session.
`PackageSource` names an index, a folder of wheels, or both; by default packages
come from where pip of this host finds them. A package that conflicts with the
session's environment or has no wheel is refused, and nothing changes then. A model
can install only with `install_packages=True`
([more](../guides/packages.md#models-that-install)).
"""

import tempfile
import zipfile
from pathlib import Path

from aca_sessions import InteractiveSession, PackageSource, Policy

NAME = "Name: greeter\nVersion: 1.0\n"
KIND = "Root-Is-Purelib: true\nTag: py3-none-any\n"


def make_wheel(folder: str) -> None:
    """Make a wheel, in place of those that your company allows."""
    path, about = Path(folder, "greeter-1.0-py3-none-any.whl"), "greeter-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("greeter.py", "def greet(name): return f'Hello {name}'\n")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\n" + NAME)
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\n" + KIND)
        wheel.writestr(f"{about}/RECORD", "")


with tempfile.TemporaryDirectory() as wheels:
    make_wheel(wheels)
    source = PackageSource(wheels=wheels)  # or index_url="https://…/simple"
    with InteractiveSession(policy=Policy(packages=source)) as session:
        session.install("greeter>=1").raise_for_error()
        print(session.run("import greeter; greeter.greet('Ann')").value)
        print([f"{one.name} {one.version}" for one in session.packages()])
        print(session.install("leftpad").error.name)

# prints:
# Hello Ann
# ['greeter 1.0']
# PackageNotFoundError
