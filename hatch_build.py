"""Build hook: put a list of this package and its declared dependencies (an SBOM in the form of CycloneDX) into each wheel (PEP 770)."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class SbomHook(BuildHookInterface):
    """Write the SBOM before a wheel is built, and remove it afterwards."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the SBOM, and name it to the builder."""
        self._folder = tempfile.TemporaryDirectory()
        path = Path(self._folder.name, f"{self.metadata.core.name}.cdx.json")
        path.write_text(json.dumps(self._sbom(), indent=2) + "\n")
        build_data["sbom_files"].append(str(path))

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the SBOM's folder."""
        self._folder.cleanup()

    def _sbom(self) -> dict[str, Any]:
        core = self.metadata.core
        optional = [one for group in core.optional_dependencies.values() for one in group]
        components = {_name(one): "optional" for one in optional} | {_name(one): "required" for one in core.dependencies}
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


def _name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower().replace("_", "-")
