"""A browser, and a page of it for each test. Tests that ask for `page` give a fixture `lab`, which serves their notebooks."""

import pytest


@pytest.fixture(scope="module")
def browser():
    from lab import CHROMIUM, playwright
    playwright.expect.set_options(timeout=30_000)
    with playwright.sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking",
                                                                       "--disable-component-update"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, lab, request):
    from lab import look
    page = browser.new_page(viewport={"width": 1300, "height": 1100})
    page.set_default_timeout(30_000)
    yield page
    look(page, request.node.name)
    page.close()
