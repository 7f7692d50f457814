"""What the wheel needs beyond the package: the pages of docs/, and a README whose links work without a clone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

PICTURE = re.compile(r"!\[[^\]]*\]\((?![a-z]+:)[^)]*\)\n*")
LINK = re.compile(r"\[([^\]]*)\]\((?![a-z]+:)([^)#]*)(?:#[^)]*)?\)")


class Pages(BuildHookInterface):
    """Put the Markdown pages of docs/ into the package, for `edgewise explain`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add ``docs/**/*.md`` to the wheel as ``edgewise/docs``; an editable install reads them in the clone."""
        docs = Path(self.root, "docs")
        for page in sorted(docs.rglob("*.md")):
            build_data["force_include"][str(page)] = f"edgewise/docs/{page.relative_to(docs).as_posix()}"


class Readme(MetadataHookInterface):
    """Make the description of the package from README.md."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set ``readme``."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": portable(text)}


def portable(text: str) -> str:
    """README.md without what only a clone has: pictures go, a link to a page names the command that shows it."""

    def named(link: re.Match[str]) -> str:
        said, target = link[1], Path(link[2])
        if target.parts[0] == "docs" and target.suffix == ".md" and target.stem != "index":
            return f"{said} (`edgewise explain {target.stem}`)"
        return said

    return LINK.sub(named, PICTURE.sub("", text))
