"""docs/errors.md and the registry say the same, and the page helps."""

from __future__ import annotations

import re

import pytest

from docs.blocks import PAGES, ROOT, page_id
from edgewise.core.errors import REGISTRY

PAGE = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (E-[A-Z0-9-]+)\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE))
TEMPLATE = "## {code}\n\n**{title}** · exit status {status}\n\n- *Likely causes:* ...\n- *What to do:* ...\n"


def test_every_code_has_its_section() -> None:
    missing = []
    for code, (title, status) in sorted(REGISTRY.items()):
        title = title[0].upper() + title[1:]
        section = SECTIONS.get(code, "")
        if f"**{title}** · exit status {status}" not in section or "*What to do:*" not in section:
            missing.append(TEMPLATE.format(code=code, title=title, status=status))
    assert not missing, "docs/errors.md needs, in the registry's words:\n\n" + "\n".join(missing)


def test_no_section_without_a_code() -> None:
    left = sorted(SECTIONS.keys() - REGISTRY.keys())
    assert not left, f"docs/errors.md describes codes that are not in REGISTRY: {left}"
    headings = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert len(headings) == len(set(headings)), "docs/errors.md: a section appears twice"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_pages_name_existing_codes_only(page: object) -> None:
    text = page.read_text(encoding="utf-8")  # type: ignore[attr-defined]
    unknown = sorted(set(re.findall(r"\bE-[A-Z][A-Z0-9-]*[A-Z0-9]\b", text)) - REGISTRY.keys())
    assert not unknown, f"codes that do not exist: {unknown}"
