"""The version is stated once, and every repetition agrees."""

from importlib.metadata import version

import yaml
from commands import ROOT

import layertap


def test_the_citation_has_what_its_format_wants_and_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == layertap.__version__


def test_the_package_was_installed_with_this_version() -> None:
    assert version("layertap") == layertap.__version__


def test_the_changelog_knows_this_version() -> None:
    assert f"## [{layertap.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
