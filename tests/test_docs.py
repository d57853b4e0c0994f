"""The documentation: its links, its messages, its reference, its spelling, and that the site builds without a warning."""

import ast
import re
import runpy
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest

import bigrad

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
SOURCE = sorted((ROOT / "bigrad").rglob("*.py"))
LINK = re.compile(r"\]\(([^)#\s]+)[^)]*\)")
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_relative_links_lead_somewhere(page):
    targets = [unquote(link[1]) for link in LINK.finditer(CODE.sub("", page.read_text("utf-8")))]
    local = [target for target in targets if not re.match(r"\w+:", target)]
    assert not [target for target in local if not (page.parent / target).exists()]


def messages() -> list[str]:
    """Every piece of text in the package, what is filled in as an ellipsis."""
    found = []
    for file in SOURCE:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "…" for v in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_troubleshooting_quotes_messages_that_exist():
    known, text = messages(), (DOCS / "troubleshooting.md").read_text("utf-8")
    quoted = re.findall(r"^`(.+)`\n: ", text, re.MULTILINE)
    assert len(quoted) >= 40
    gone = []
    for quote in quoted:
        pieces = [re.escape(piece.strip()) for piece in quote.split("…")]
        pattern = re.compile(".*".join(pieces), re.DOTALL)
        if not any(pattern.search(message) for message in known):
            gone.append(quote)
    assert not gone, "\n".join(gone)


def test_the_reference_has_every_public_name():
    shown = "\n".join(page.read_text("utf-8") for page in (DOCS / "api").glob("*.md"))
    names = set(re.findall(r"^\.\. auto(?:class|function|exception|module):: bigrad\.(\S+)$", shown, re.MULTILINE))
    assert set(bigrad.__all__) <= names
    assert {f"losses.{name}" for name in bigrad.losses.__all__} <= names


@pytest.mark.skipif(find_spec("codespell_lib") is None, reason="needs codespell")
def test_spelling():
    texts = [str(file.relative_to(ROOT)) for file in [*PAGES, *SOURCE]]
    command = [sys.executable, "-m", "codespell_lib", *texts, "docs/conf.py", "examples", "tests"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_pictures_can_be_drawn_again(tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    script = runpy.run_path(str(DOCS / "pictures" / "kinks.py"))
    for name in ("kink", "tie"):
        script[name](tmp_path / f"{name}.png")
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    runpy.run_path(str(DOCS / "pictures" / "front.py"))["main"](tmp_path)
    assert (tmp_path / "front.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.skipif(find_spec("sphinx") is None, reason="needs the extra 'docs'")
def test_the_site_builds_without_a_warning(tmp_path):
    options = ["--quiet", "--fail-on-warning", "--keep-going", "--nitpicky"]
    command = [sys.executable, "-m", "sphinx", *options, str(DOCS), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False)
    shutil.rmtree(tmp_path / "site", ignore_errors=True)
    assert done.returncode == 0, done.stderr
