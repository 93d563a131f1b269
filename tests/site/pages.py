"""The built site as files: its pages, and where their links lead."""

import os
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bs4 import BeautifulSoup

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(os.environ.get("TOPOPRUNE_SITE") or ROOT / "_build" / "html")  # read before the tests unset TOPOPRUNE_
PAGES = sorted(path.relative_to(SITE).as_posix() for path in SITE.glob("book/*.html"))
WITHOUT_ARTICLE = ["search.html", "genindex.html"]
SOURCES = sorted(path.relative_to(SITE).as_posix() for path in SITE.glob("_modules/**/*.html"))
THEMES = ("light", "dark")
ATTRIBUTES = {"a": "href", "link": "href", "img": "src", "script": "src", "source": "srcset", "object": "data"}


def theme_of(name: str) -> str:
    """The theme in which a page is seen: one after the other in turn, as pages share their styles and scripts."""
    return THEMES[(PAGES + WITHOUT_ARTICLE).index(name) % len(THEMES)]


def broken_links(name: str) -> list[str]:
    """Links, images, scripts and styles of a page that lead to no file of the site, or to no id of its target."""
    html = _parsed(SITE / name)
    found = {element[key] for tag, key in ATTRIBUTES.items() for element in html.find_all(tag, attrs={key: True})}
    return sorted(link for link in found if _is_internal(link) and not _leads_somewhere(SITE / name, link))


def _is_internal(link: str) -> bool:
    return not urlsplit(link).scheme and not urlsplit(link).netloc


def _leads_somewhere(page: Path, link: str) -> bool:
    path, anchor = unquote(urlsplit(link).path), unquote(urlsplit(link).fragment)
    target = (page.parent / path).resolve() if path else page
    if target.is_dir():
        target /= "index.html"
    if not target.is_file() or not target.is_relative_to(SITE.resolve()):
        return False
    return not anchor or target.suffix != ".html" or anchor in _ids(target)


@cache
def _parsed(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(), "html.parser")


@cache
def _ids(path: Path) -> set[str]:
    return {element["id"] for element in _parsed(path).find_all(id=True)}
