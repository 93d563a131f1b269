"""The pages of a site become one page, whose links lead where they led; the PDF that is printed from it is whole."""

import importlib.util
import sys

import pytest
from bs4 import BeautifulSoup
from pages import ROOT, SITE
from pypdf import PdfReader

sys.path.insert(0, str(ROOT / "book"))  # book/pdf.py imports book/browser.py
spec = importlib.util.spec_from_file_location("pdf", ROOT / "book" / "pdf.py")
pdf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pdf)

PAGE = "<html><head><title>x</title></head><body><article><h1>{}</h1>{}</article></body></html>"


@pytest.fixture
def small_site(tmp_path):
    """Two pages with one id in common."""
    (tmp_path / "book").mkdir()
    first = (
        '<p id="same"></p><a href="#same">here</a><a href="second.html">page</a><a href="second.html#same">there</a>'
        '<a href="second.html#own">own</a><a href="../genindex.html">left out</a><a href="https://x.org/#same">away</a>'
    )
    (tmp_path / "book" / "first.html").write_text(PAGE.format("First", first))
    (tmp_path / "book" / "second.html").write_text(PAGE.format("Second", '<p id="same"></p><p id="own"></p>'))
    return tmp_path


def test_links_of_the_one_page_lead_where_they_led(small_site):
    html = BeautifulSoup(pdf.one_page(small_site, ["first", "second"]), "html.parser")
    ids = [element["id"] for element in html.find_all(id=True)]
    assert len(ids) == len(set(ids))
    links = {link.get_text(): link.get("href") for link in html.find_all("a")}
    assert links["away"] == "https://x.org/#same"
    assert links["left out"] is None
    target = {text: html.find(id=href[1:]) for text, href in links.items() if href and href.startswith("#")}
    heading = {text: place.find_parent("article").h1 for text, place in target.items() if place.name == "p"}
    assert {text: h1.get_text() for text, h1 in heading.items()} == {
        "here": "First",
        "there": "Second",
        "own": "Second",
    }
    assert target["page"].name == "article" and target["page"].h1.get_text() == "Second"
    assert (target["First"].h1.get_text(), target["Second"].h1.get_text()) == ("First", "Second")  # the contents


def test_the_book_has_the_order_of_its_table_of_contents(tmp_path):
    toc = tmp_path / "_toc.yml"
    toc.write_text("root: book/a\nparts:\n- chapters: [{file: book/c}]\n- chapters: [{file: book/b}]\n")
    assert pdf.chapters(toc) == ["a", "c", "b"]


def test_a_site_that_is_missing_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pdf.py", "--site", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        pdf.main()
    assert str(stopped.value).startswith("pdf.py: ") and str(stopped.value).endswith("make book builds the site first")
    assert "\n" not in str(stopped.value)


@pytest.mark.site
def test_the_pdf_holds_every_chapter_and_no_empty_page(site):
    reader = PdfReader(SITE / "topoprune.pdf")
    pages = [BeautifulSoup((site / "book" / f"{name}.html").read_text(), "html.parser") for name in _names()]
    titles = [page.select_one("article h1").get_text().removesuffix("#").strip() for page in pages]
    chapters = [entry.title for entry in reader.outline if not isinstance(entry, list)]
    assert chapters == [" ".join(title.split()) for title in titles]
    assert [number for number, page in enumerate(reader.pages, 1) if _is_empty(page, number)] == []
    links = [note.get_object() for page in reader.pages for note in page.get("/Annots", [])]
    assert not [link for link in links if "127.0.0.1" in str(link.get("/A", {}).get("/URI", ""))]


def _is_empty(page, number):
    """Whether a page draws nothing but its number. Text is extracted where little is drawn: it takes long."""
    if page["/Resources"].get("/XObject") or len(page.get_contents().get_data()) > 5_000:
        return False
    return page.extract_text().strip() in ("", str(number))


def _names():
    return pdf.chapters(SITE.parent / "stage" / "_toc.yml")
