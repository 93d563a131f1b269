"""Every page of the built site, seen in a browser: it needs no other host, fits, serves all readers, and answers."""

import re
from pathlib import Path

import axe_playwright_python
import pytest
import yaml
from pages import PAGES, ROOT, SOURCES, WITHOUT_ARTICLE, broken_links

pytestmark = pytest.mark.site

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
REPEATED = [["tbody tr:nth-child(n+6)"], ["dl.py ~ dl.py ~ dl.py ~ dl.py"]]  # drawn as the first few are
WIDTHS = (1280, 360)


def by_page(*others):
    """Parametrize a test by page and more. Tests of one page run in one worker of pytest-xdist, which loads it once."""
    return [
        pytest.param(name, *other, marks=pytest.mark.xdist_group(name))
        for other in (others or [()])
        for name in PAGES + WITHOUT_ARTICLE
    ]


def test_the_site_has_every_page_of_the_table_of_contents(site):
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [toc["root"]] + [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    assert [page for page in listed if not (site / f"{page}.html").exists()] == []


@pytest.mark.parametrize("page", ["index.html", *PAGES, *WITHOUT_ARTICLE, *SOURCES])
def test_links_and_images_lead_somewhere(page):
    assert broken_links(page) == []


@pytest.mark.parametrize("page", by_page())
def test_a_page_loads_without_errors_and_asks_no_other_host(views, page):
    assert views(page).errors == []


OVERFLOWING = """() => {
    // Elements that run out of their column; what scrolls in a box of its own may, its caption may not.
    const column = document.querySelector("article") ?? document.querySelector("main");
    const wide = "aside, .margin, .sidebar, .full-width, .tag_full-width";
    const scrolls = element => ["auto", "scroll"].includes(getComputedStyle(element).overflowX);
    const hidden = element => element.closest("mjx-assistive-mml, .visually-hidden, .sr-only, .headerlink");
    const inBox = element => {
        for (let box = element.parentElement; box && box !== column.parentElement; box = box.parentElement)
            if (scrolls(box)) return true;
        return false;
    };
    const found = [];
    for (const element of column.querySelectorAll("*")) {
        const {left, right, width, height} = element.getBoundingClientRect();
        if (!width || !height || hidden(element)) continue;
        const bounds = element.closest(wide) ? document.documentElement : column;
        const {left: first, right: last} = bounds.getBoundingClientRect();
        const caption = element.matches("caption, figcaption, .caption-text");
        if ((left < first - 1 || right > last + 1) && (caption || !inBox(element)))
            found.push(`${element.tagName.toLowerCase()}${element.id && "#" + element.id} ` +
                `${Math.round(left)}..${Math.round(right)}, column ${Math.round(first)}..${Math.round(last)}: ` +
                (element.textContent ?? "").trim().slice(0, 40));
    }
    const {scrollWidth, clientWidth} = document.documentElement;
    if (scrollWidth > clientWidth) found.push(`the page is ${scrollWidth} wide`);
    return found.slice(0, 8);
}"""


@pytest.mark.parametrize(("page", "width"), by_page(*((width,) for width in WIDTHS)))
def test_nothing_runs_out_of_its_column(views, page, width):
    tab = views(page).page
    tab.set_viewport_size({"width": width, "height": 900})
    try:
        found = tab.evaluate(OVERFLOWING)
        assert not found, "\n".join(found)
    finally:
        tab.set_viewport_size({"width": 1280, "height": 900})


@pytest.mark.parametrize("page", by_page())
def test_axe_finds_no_serious_fault(views, page):
    assert_no_serious_fault(
        views(page).page, {"include": [["html"]]}, {"rules": {"color-contrast": {"enabled": False}}}
    )


@pytest.mark.parametrize("page", by_page())
def test_axe_finds_enough_contrast(views, page):
    assert_no_serious_fault(views(page).page, {"exclude": REPEATED}, {"runOnly": ["color-contrast"]})


def assert_no_serious_fault(tab, context, options):
    tab.evaluate(AXE)
    options |= {"preload": False, "resultTypes": ["violations"]}
    violations = tab.evaluate("([context, options]) => axe.run(context, options)", [context, options])["violations"]
    faults = [
        f"{fault['id']} ({fault['impact']}), {len(fault['nodes'])} times: {fault['help']}: {node['html'][:200]}"
        for fault in violations
        for node in fault["nodes"][:3]
        if fault["impact"] in ("serious", "critical")
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page", by_page())
def test_a_page_has_its_title(views, page):
    tab = views(page).page
    (heading,) = tab.locator("main h1:visible").all_inner_texts()
    assert heading.rstrip("#\n").strip()
    assert page in WITHOUT_ARTICLE or heading.rstrip("#\n").split(". ")[-1].strip() in tab.title()


@pytest.mark.parametrize("page", by_page())
def test_mathematics_is_set(views, page):
    tab = views(page).page
    assert tab.locator("main .math").count() == tab.locator("main .math:has(mjx-container)").count()
    assert tab.locator("[data-mml-node=merror]").count() == 0
    prose = tab.evaluate("""() => {
        const main = document.querySelector("main").cloneNode(true);
        main.querySelectorAll("code, pre, script, style, mjx-container").forEach(element => element.remove());
        return main.textContent;
    }""")
    assert re.findall(r"\$[^$\n]{1,60}\$|\\[(\[]|\\(?:frac|sum|delta|ell)", prose) == []


def test_search_finds_a_term_and_opens_its_page(tab, address):
    page = tab.page
    page.goto(f"{address}/book/intro.html")
    page.locator("input[type=search]:visible, .search-button__button:visible").first.click()
    page.locator("input[type=search]:visible").first.fill("persistence")
    page.keyboard.press("Enter")
    result = page.locator("#search-results li a").first
    result.wait_for()
    result.click()
    page.wait_for_url(re.compile(r"/book/\w+\.html"))
    assert "persistence" in page.locator("article").inner_text().lower()
    assert tab.errors == []


def test_the_switch_changes_the_theme_and_the_next_page_keeps_it(tab, address):
    page = tab.page
    page.goto(f"{address}/book/intro.html")
    theme = "document.documentElement.dataset.theme"
    colour = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(f"[{theme}, {colour}]")
    for _ in ("light", "dark", "auto"):  # the switch goes round
        if page.evaluate(theme) == before[0]:
            page.locator(".theme-switch-button:visible").first.click()
    after = page.evaluate(f"[{theme}, {colour}]")
    assert before[0] != after[0] and before[1] != after[1]
    page.goto(f"{address}/book/claims.html")
    assert page.evaluate(f"[{theme}, {colour}]") == after


def test_the_explorer_answers(tab, address):
    page = tab.page
    page.goto(f"{address}/book/explorer.html")
    choice = page.locator("#explorer select").first
    choice.wait_for()
    shown = "document.querySelector('#explorer').innerText + document.querySelector('#explorer svg')?.innerHTML"
    before = page.evaluate(shown)
    values = choice.locator("option").evaluate_all("options => options.map(option => option.value)")
    current = choice.input_value()
    choice.select_option(next(value for value in values if value != current))
    page.wait_for_function(f"before => {shown} !== before", arg=before)
    assert tab.errors == []
