"""Build hooks of both distributions: this folder's pyproject.toml makes aca-sessions-core, and the one above it aca-sessions.

The published aca-sessions has no module, and depends on the core of the same version. Its wheel is built from its sdist, which has no
sources. A wheel or an editable installation that is built in a checkout has the sources instead, and the dependencies of the core, so that
no index has to know the core.

This module is the build backend of aca-sessions, too. It has hatchling's functions without those that prepare metadata: they leave out the
dependencies that a build hook adds. A frontend builds the wheel instead.
"""

import json
import re
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from hatchling.build import (  # noqa: F401 - called by the frontend
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

_CORE = "aca-sessions-core"


class ExtrasHook(MetadataHookInterface):
    """Give aca-sessions the extras of the core. An sdist has them in its own metadata, and does not call this."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Copy the extras."""
        metadata["optional-dependencies"] = _core_project(self.root)["optional-dependencies"]


class WheelHook(BuildHookInterface):
    """Add the core to a wheel of aca-sessions, as a dependency or in it. Put a list of all dependencies into each wheel.

    The list is an SBOM (PEP 770) in the form of CycloneDX.
    """

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name what the wheel contains and depends on."""
        if self.metadata.core.name != _CORE:
            build_data["dependencies"] += self._find_core()
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, f"{self.metadata.core.name}.cdx.json")
        path.write_text(json.dumps(self._sbom(build_data["dependencies"]), indent=2) + "\n")
        build_data["sbom_files"].append(str(path))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the SBOM's folder."""
        self._folder.cleanup()

    def _find_core(self) -> list[str]:
        """Return the dependencies that stand for the core: its distribution or, in a checkout, what the sources need."""
        extras = self.config["extras"]
        if not Path(self.root, "src", "aca_sessions").is_dir():
            return [f"{_CORE}[{','.join(extras)}]=={self.metadata.version}"]
        core = _core_project(self.root)
        needed = [*core["dependencies"], *(one for extra in extras for one in core["optional-dependencies"][extra])]
        own = {_name(one) for one in self.metadata.core.dependencies}
        return [one for one in dict.fromkeys(needed) if _name(one) not in own]

    def _sbom(self, added: list[str]) -> dict[str, Any]:
        core = self.metadata.core
        optional = [one for group in core.optional_dependencies.values() for one in group]
        components = {_name(one): "optional" for one in optional} | {_name(one): "required" for one in [*core.dependencies, *added]}
        own = f"pkg:pypi/{core.name}@{self.metadata.version}"
        return {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {
                "component": {
                    "type": "library",
                    "bom-ref": own,
                    "name": core.name,
                    "version": self.metadata.version,
                    "purl": own,
                    "licenses": [{"license": {"id": core.license}}],
                }
            },
            "components": [
                {"type": "library", "bom-ref": f"pkg:pypi/{name}", "name": name, "purl": f"pkg:pypi/{name}", "scope": scope}
                for name, scope in sorted(components.items())
            ],
            "dependencies": [{"ref": own, "dependsOn": [f"pkg:pypi/{name}" for name in sorted(components)]}],
        }


def _core_project(root: str) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(Path(root, "src", "pyproject.toml").read_text())["project"]
    return project


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
