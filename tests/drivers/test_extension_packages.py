"""Installed packages with parts of one's own: by name, digest and entry point, and by nothing else."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import own_package
import pytest

from edgewise.core.errors import EdgewiseError
from edgewise.drivers import extension_packages
from edgewise.plan.facts import ExtensionPackage


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_package.installed(tmp_path / "site", monkeypatch)


def refused(packages: Sequence[ExtensionPackage], allowed: Mapping[str, str] | None = None) -> str:
    with pytest.raises(EdgewiseError) as caught:
        extension_packages.catalogue(packages, allowed)
    assert own_package.MODULE not in sys.modules, "nothing of it is imported"
    return f"{caught.value.code}: {caught.value.what}"


def test_a_package_is_used_by_its_name_and_digest(module: Path) -> None:
    digest = extension_packages.package_files_digest(own_package.NAME)
    packages = extension_packages.installed_packages([own_package.MODULE])
    assert packages == (ExtensionPackage(name=own_package.NAME, sha256=digest),)
    assert "does not allow" in refused(packages, {})
    assert "owner of this machine allows 000" in refused(packages, {own_package.NAME: "0" * 64})
    assert "not installed" in refused([ExtensionPackage(name="no-such-package", sha256=digest)])
    compiled = module.parent / "more.pyc"  # importable as it is, beside the files that Python compiles itself
    record = next(module.parent.glob("*.dist-info")) / "RECORD"
    listed = record.read_text()
    compiled.write_bytes(b"code")
    record.write_text(f"{listed}more.pyc,,\n__pycache__/own_parts.cpython-311.pyc,,\n")
    assert "the installed one has" in refused(packages)
    record.write_text(listed)
    module.write_text("raise SystemExit\n")
    assert "the installed one has" in refused(packages, {own_package.NAME: digest})


def test_a_module_that_hides_that_of_a_package_is_not_taken_for_it(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "before").mkdir()
    (tmp_path / "before" / module.name).write_text("raise SystemExit\n")
    packages = extension_packages.installed_packages([own_package.MODULE])
    monkeypatch.syspath_prepend(str(tmp_path / "before"))
    assert "not among the files" in refused(packages)


def test_the_trainer_of_a_package_trains_in_runs_that_name_it_or_in_every_run(module: Path) -> None:
    packages = extension_packages.installed_packages([own_package.MODULE])
    allowed = {own_package.NAME: packages[0].sha256}
    assert extension_packages.catalogue((), allowed).trainer is None
    always = extension_packages.catalogue((), allowed, [own_package.NAME])
    assert (always.trainer is not None, always.packages, "coarse" in always.stages) == (True, (), False)
    named = extension_packages.catalogue(packages, allowed)
    assert (named.trainer is not None, named.packages, "coarse" in named.stages) == (True, packages, True)


def test_only_packages_with_an_entry_point_can_be_named() -> None:
    with pytest.raises(EdgewiseError, match="no installed package") as caught:
        extension_packages.installed_packages(["json"])
    assert caught.value.code == "E-EXTENSION"
    with pytest.raises(EdgewiseError, match="not installed"):
        extension_packages.package_files_digest("no-such-package")
