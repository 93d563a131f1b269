"""Print the site that was built last into one PDF.

    python book/pdf.py [--site _build/html] [--pdf _build/html/topoprune.pdf]

The chapters are put one after another into one page, in the order of `_toc.yml`, and links between them lead there. A
browser of this system sets the mathematics and prints. Nothing is requested from elsewhere.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import yaml
from browser import opened, served
from bs4 import BeautifulSoup, NavigableString, Tag
from playwright.sync_api import Browser, Error
from pypdf import PdfWriter
from pypdf.generic import DictionaryObject, NameObject, TextStringObject

ROOT = Path(__file__).resolve().parent.parent
STYLE = ROOT / "book" / "print.css"
LEFT_OUT = ".headerlink, .viewcode-link, .prev-next-footer, .toctree-wrapper, details.hide.above-input"
FOOTER = '<div style="width: 100%; font-size: 8px; text-align: center"><span class="pageNumber"></span></div>'
MARGIN = {"top": "16mm", "bottom": "18mm", "left": "17mm", "right": "17mm"}
WIDTH = round((210 - 2 * 17) / 25.4 * 96)
"""CSS pixels between the margins of A4."""

READY = """async () => {
    document.querySelectorAll("details").forEach(fold => fold.open = true);
    document.querySelectorAll("img").forEach(image => image.loading = "eager");
    await window.MathJax.startup.promise;
    await Promise.all([...document.images].map(image => image.decode()));
    const keepTogether = (first, height) => { // an image is never split
        const room = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        room.style = `display: block; width: 1px; height: ${height}px; margin-bottom: -${height}px`;
        first.before(room);
    };
    for (const heading of document.querySelectorAll("h2, h3, h4, .rubric"))
        keepTogether(heading, heading.getBoundingClientRect().height + 80);
    for (const table of document.querySelectorAll("table")) {
        const width = table.parentElement.clientWidth;
        for (let size = 9.5; table.scrollWidth > width && size > 4; size -= 0.5) table.style.fontSize = `${size}px`;
        // A table begins where a short one fits whole, a long one with some rows; a heading before it goes with it.
        let first = table.closest(".pst-scrollable-table-container") ?? table;
        while (!first.previousElementSibling && first.parentElement.matches("div")) first = first.parentElement;
        if (/^H[1-6]$/.test(first.previousElementSibling?.tagName)) first = first.previousElementSibling;
        const end = table.rows[Math.min(table.rows.length, table.rows.length <= 16 ? 16 : 6) - 1];
        keepTogether(first, end.getBoundingClientRect().bottom - first.getBoundingClientRect().top);
    }
}"""
HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")]
    .filter(heading => heading.getClientRects().length)
    .map(heading => heading.textContent.trim().replace(/\\s+/g, " "))"""


def main() -> None:
    """Parse the options and print the book; any known error is one line."""
    options = _parser().parse_args()
    started = time.perf_counter()
    try:
        html = one_page(options.site, chapters(options.site.parent / "stage" / "_toc.yml"))
        with served(options.site) as address, opened() as browser:
            print_page(browser, f"{address}/book/print.html", html, options.pdf)
    except FileNotFoundError as error:
        raise SystemExit(f"pdf.py: {error.filename} does not exist: make book builds the site first") from error
    except (Error, OSError, RuntimeError) as error:
        raise SystemExit(f"pdf.py: {' '.join(str(error).split())}") from error
    size = options.pdf.stat().st_size / 1e6
    print(f"pdf.py: {options.pdf}, {size:.1f} MB, {time.perf_counter() - started:.0f} s", file=sys.stderr)


def chapters(table_of_contents: Path) -> list[str]:
    """The names of the pages of the book, in its order."""
    toc = yaml.safe_load(table_of_contents.read_text())
    entries = [toc["root"], *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"])]
    return [Path(entry).name for entry in entries]


def one_page(site: Path, names: list[str]) -> str:
    """The articles of the pages, one after another, in the frame of the first.

    An id that several pages have gets the name of its page in front. Links lead to the ids of this page, to
    other hosts, or nowhere.
    """
    pages = {name: BeautifulSoup((site / "book" / f"{name}.html").read_text(), "html.parser") for name in names}
    articles = {name: page.select_one("article") for name, page in pages.items()}
    times = Counter(element["id"] for article in articles.values() for element in article.find_all(id=True))
    frame = pages[names[0]]
    title = frame.new_tag("title")
    title.string = articles[names[0]].h1.get_text().removesuffix("#")
    frame.title.replace_with(title)
    frame.body.clear()
    main = frame.new_tag("main", attrs={"class": "bd-content"})
    frame.body.append(main)
    for name, article in articles.items():
        for element in article.select(LEFT_OUT):
            element.decompose()
        for link in article.select("a.download"):  # "SVG, CSV." at the end of a caption
            if isinstance(link.next_sibling, NavigableString):
                link.next_sibling.replace_with(link.next_sibling.lstrip(" ,."))
            link.decompose()
        for cell in article.select("div.cell"):
            if not cell.get_text(strip=True) and not cell.find(["img", "svg"]):
                cell.decompose()  # else a heading could stand alone above it
        for element in article.find_all(id=True):
            element["id"] = _id(name, element["id"], times)
        for link in article.find_all("a", href=True):
            _turn(link, name, names, times)
        article["id"] = _id(name, "", times)
        main.append(article)
    articles[names[0]].insert_after(_contents(frame, articles))
    return str(frame)


def print_page(browser: Browser, address: str, html: str, pdf: Path) -> None:
    """Print one page, with an outline of its headings.

    Raises:
        RuntimeError: the page asked another host for something.
    """
    page = browser.new_page(viewport={"width": WIDTH, "height": 1000}, color_scheme="light")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.route(address, lambda route: route.fulfill(body=html, content_type="text/html; charset=utf-8"))
    page.emulate_media(media="print")
    page.goto(address)
    page.add_style_tag(path=STYLE)
    page.evaluate(READY)
    here = "{0.scheme}://{0.netloc}/".format(urlsplit(address))
    if elsewhere := [url for url in asked if not url.startswith((here, "data:", "blob:"))]:
        raise RuntimeError(f"the book requests {elsewhere[0]}: a page must hold all that it shows")
    page.pdf(
        path=pdf,
        format="A4",
        margin=MARGIN,
        print_background=True,
        display_header_footer=True,
        header_template="<span></span>",
        footer_template=FOOTER,
        outline=True,
        tagged=True,
    )
    _name_outline(pdf, page.evaluate(HEADINGS))


def _name_outline(pdf: Path, headings: list[str]) -> None:
    """Give the entries of the outline the text of the headings: Chromium says a heading twice that it moved on a page.

    Raises:
        RuntimeError: there are more or fewer entries than headings.
    """
    writer = PdfWriter(clone_from=pdf)
    entries = list(_entries(writer.root_object["/Outlines"]))
    if len(entries) != len(headings):
        raise RuntimeError(f"the outline has {len(entries)} entries for {len(headings)} headings")
    for entry, heading in zip(entries, headings, strict=True):
        entry[NameObject("/Title")] = TextStringObject(heading)
    writer.write(pdf)


def _entries(parent: DictionaryObject) -> Iterator[DictionaryObject]:
    child = parent.get("/First")
    while child is not None:
        yield child.get_object()
        yield from _entries(child.get_object())
        child = child.get_object().get("/Next")


def _contents(frame: BeautifulSoup, articles: dict[str, Tag]) -> Tag:
    """A page of contents."""
    contents = frame.new_tag("article", attrs={"class": "contents"})
    for article in articles.values():
        line = frame.new_tag("p")
        line.append(frame.new_tag("a", href=f"#{article['id']}", string=article.h1.get_text()))
        contents.append(line)
    return contents


def _id(name: str, own: str, times: Counter) -> str:
    """What the element of a page is called on the one page; the page itself where `own` is empty."""
    return own if times[own] == 1 else f"{name}--{own}"


def _turn(link: Tag, name: str, names: list[str], times: Counter) -> None:
    """Lead a link to its place on the one page; a link to another part of the site loses its target."""
    target = urlsplit(link["href"])
    if target.scheme or target.netloc:
        return
    page = Path(target.path).stem if target.path else name
    if page in names and target.path.removesuffix(".html") in ("", page):
        link["href"] = f"#{_id(page, target.fragment, times)}"
    else:
        del link["href"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pdf.py", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--site", type=Path, default=ROOT / "_build" / "html")
    parser.add_argument("--pdf", type=Path, default=ROOT / "_build" / "html" / "topoprune.pdf")
    return parser


if __name__ == "__main__":
    main()
