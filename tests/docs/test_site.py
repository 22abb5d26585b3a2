"""The documentation as a site: it builds without a warning, loads nothing from another host, and its generated pages are up to date."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

import airflow_nnunet
from airflow_nnunet.backends.docker.options import DockerOptions
from devtools.reference_docs import pages
from support.snippets import PROJECT

# What a browser fetches by itself. A link that a reader may follow is not among these.
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src", "video": "src", "object": "data"}


class _Loaded(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in LOADED:
            self.addresses += [value or "" for name, value in attrs if name in (LOADED[tag], "srcset")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; with a proxy that does not exist, so that a build that asks for anything outside fails."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", folder]
    done = subprocess.run(
        command, cwd=PROJECT, env={**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_nothing_is_loaded_from_another_host(site: Path) -> None:
    read = list(site.rglob("*.html"))
    assert len(read) > 30
    for page in read:
        parser = _Loaded()
        parser.feed(page.read_text())
        assert [address for address in parser.addresses if re.match(r"(?:[a-z]+:)?//", address)] == [], page
    styles = "".join(path.read_text() for path in [*site.rglob("*.css"), *read])
    assert re.findall(r"(?:url\(|@import )['\"]?(?:https?:)?//[^)'\"]*", styles) == []
    # Scripts may fetch, too: what is left are GitHub's API, asked only for a repository's address, and a link in a message to developers.
    scripts = [path for path in (site / "assets" / "javascripts").rglob("*.js") if path.parent.name != "lunr"]
    code = "".join(re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL) for path in scripts)
    assert set(re.findall(r"https?://([a-z0-9.-]+)", code)) <= {"api.github.com", "bit.ly"}
    assert 'data-md-component="source"' not in "".join(page.read_text() for page in read)
    assert not list(site.rglob("*.map"))


def test_operators_show_their_arguments_and_no_markup_of_another_tool(site: Path) -> None:
    text = (site / "reference" / "operators.html").read_text()
    assert all(name in text for name in ("TrainFoldOperator", "checkpoint_every", "gpu_memory_mib", "DicomWebStudySensor"))
    assert not re.search(r":(?:class|func|meth|mod|data):", text)


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page() -> None:
    text = (PROJECT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE))
    assert listed == {path.relative_to(PROJECT / "docs").as_posix() for path in (PROJECT / "docs").rglob("*.md")}


@pytest.mark.parametrize("name", sorted(pages()))
def test_a_page_that_is_made_from_code_is_up_to_date(name: str) -> None:
    assert (PROJECT / name).read_text() == pages()[name], "run `python -m devtools.reference_docs`"


def test_every_option_of_the_docker_backend_is_explained() -> None:
    text = (PROJECT / "docs" / "how-to" / "docker.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == [item.name for item in fields(DockerOptions)]


def test_the_readme_is_for_people_in_a_hurry() -> None:
    lines = (PROJECT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120] == []


def test_links_between_files_outside_of_the_site_lead_somewhere() -> None:
    for page in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (PROJECT / page).read_text()):
            assert (PROJECT / target).is_file(), f"{page}: {target}"


def test_one_version_everywhere() -> None:
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text())
    assert (citation["cff-version"], str(citation["version"])) == ("1.2.0", airflow_nnunet.__version__)
    released = re.findall(r"^## \[(\d[^\]]*)\]", (PROJECT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == airflow_nnunet.__version__


def test_hooks_before_a_commit_fetch_nothing_and_call_what_there_is() -> None:
    config = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())
    (local,) = config["repos"]
    assert local["repo"] == "local"
    for hook in local["hooks"]:
        assert hook["language"] == "system"
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/")
        assert (Path(sys.executable).parent / Path(program).name).is_file()
