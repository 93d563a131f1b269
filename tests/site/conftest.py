"""The site that was built last, served on this machine and opened in a browser of the system."""

import importlib.util
from dataclasses import dataclass, field

import pytest
from pages import ROOT, SITE, theme_of

KNOWN = "Identifier 'THEBE_JS_URL' has already been declared"  # sphinx-thebe adds its script twice
MATH_IS_SET = "() => window.MathJax?.startup?.promise?.then(() => true) ?? true"

spec = importlib.util.spec_from_file_location("browser", ROOT / "book" / "browser.py")
browser_module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(browser_module)


@dataclass
class View:
    """A page that the browser shows in one theme, and what went wrong while it loaded.

    Attributes:
        page: Playwright's page.
        address: what it shows.
        errors: errors in the console, requests that failed and requests to other hosts.
    """

    page: object
    address: str
    errors: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def site():
    """The folder of the built site.

    Raises:
        Failed: there is none.
    """
    if not (SITE / "book" / "intro.html").exists():
        pytest.fail(f"{SITE} holds no built site: make site")
    return SITE


@pytest.fixture(scope="session")
def address(site):
    with browser_module.served(site) as address:
        yield address


@pytest.fixture(scope="session")
def browser():
    with browser_module.opened() as browser:
        yield browser


@pytest.fixture(scope="session")
def views(browser, address):
    """One tab for each theme, as a function of the page; a page that its tab shows is not loaded again."""
    tabs = {}

    def show(name):
        theme = theme_of(name)
        if theme not in tabs:
            tabs[theme] = _tab(browser, address, theme)
        tab = tabs[theme]
        if tab.address != f"{address}/{name}":
            tab.address = f"{address}/{name}"
            tab.errors.clear()
            tab.page.goto(tab.address)
            tab.page.evaluate(MATH_IS_SET)
        return tab

    return show


@pytest.fixture
def tab(browser, address):
    """A tab of its own, for a test that types and clicks."""
    tab = _tab(browser, address, "light")
    yield tab
    tab.page.context.close()


def _tab(browser, address, theme):
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.add_init_script(
        f"if (!localStorage.mode) {{ localStorage.mode = '{theme}'; localStorage.theme = '{theme}' }}"
    )
    view = View(context.new_page(), "")

    def stop(route):
        view.errors.append(f"requests {route.request.url}")
        route.abort()

    context.route(lambda url: not url.startswith(address), stop)
    view.page.on("console", lambda message: message.type == "error" and view.errors.append(message.text))
    view.page.on("pageerror", lambda error: str(error) != KNOWN and view.errors.append(str(error)))
    view.page.on("response", lambda response: response.ok or view.errors.append(f"{response.status}: {response.url}"))
    return view
