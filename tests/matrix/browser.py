"""The matrix's page as people see and use it, in Chromium. Run by `nox -s pages`.

It takes the system's Chromium (Debian: `apt install chromium`), or the one that the
environment variable CHROMIUM names; without any these tests fail, as nobody has looked.
What was seen is left in `results/matrix/`.
"""

import os
import shutil

import page
import planted
import pytest
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SHOTS = page.ROOT / "results" / "matrix"
REAL = page.ROOT / "docs" / "matrix.html"


@pytest.fixture(scope="module")
def browser():
    found = os.environ.get("CHROMIUM") or next(
        filter(None, map(shutil.which, NAMES)), 0
    )
    if not found:
        pytest.fail(
            f"The page wasn't looked at: no Chromium. Received: none of {NAMES}. "
            "Install one, or set CHROMIUM to its path."
        )
    with sync_playwright() as playwright:
        # Containers have no sandbox to give; the page is our own.
        chromium = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox"]
        )
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser, tmp_path):
    """A function that opens a page, planted or that in docs."""
    contexts = []

    def open_page(path=None, *, width=1400, **options):
        if path is None:
            folder = planted.write(
                tmp_path,
                planted.column("jax-cpu", planted.FAULT, *planted.ABSENT),
                planted.column("torch-cpu", planted.KERASS_FAULT),
                planted.column("numpy-cpu", *planted.SKIPPED),
            )
            path = tmp_path / "matrix.html"
            path.write_text(page.render(page.read(folder), "page.html"))
        viewport = {"width": width, "height": 900}
        contexts.append(browser.new_context(viewport=viewport, **options))
        tab = contexts[-1].new_page()
        tab.requests, tab.errors = [], []
        tab.on("request", lambda request: tab.requests.append(request.url))
        tab.on("pageerror", lambda error: tab.errors.append(str(error)))
        tab.on("console", lambda message: tab.errors.append(message.text))
        tab.goto(path.as_uri())
        return tab

    yield open_page
    for context in contexts:
        context.close()


def rows(tab):
    """The names of the rows that can be seen."""
    names = tab.locator("tr.row > th").all()
    return [name.inner_text() for name in names if name.is_visible()]


def headings(tab):
    found = tab.locator("thead th[scope=colgroup]").all()
    return [
        th.inner_text().partition("\n")[0].strip() for th in found if th.is_visible()
    ]


ALL = ["plain fit", "an empty batch", "ghost batches"]


@pytest.mark.parametrize("path", [REAL, None], ids=["docs", "planted"])
def test_the_page_needs_nothing_but_itself(opened, path):
    tab = opened(path)

    assert len(tab.requests) == 1 and tab.errors == []
    assert tab.locator("script, link, img, iframe").count() == 0


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("wide", 1400, "light"),
        ("dark", 1400, "dark"),
        ("tablet", 800, "light"),
        ("narrow", 390, "light"),
        ("narrow_dark", 390, "dark"),
    ],
)
def test_the_page_fits_its_window(opened, name, width, scheme):
    tab = opened(REAL, width=width, color_scheme=scheme)
    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=SHOTS / f"{name}.png", full_page=True)

    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    cut = """cells => cells.filter(c => c.offsetParent && c.scrollWidth >
        c.closest('td').clientWidth + 1).map(c => c.innerText)"""
    assert tab.locator("summary, .empty").evaluate_all(cut) == []
    assert len(rows(tab)) == tab.locator("tr.row").count() > 30


def test_the_page_is_printed_whole(opened):
    tab = opened(REAL)
    tab.emulate_media(media="print")
    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.pdf(path=SHOTS / "print.pdf", prefer_css_page_size=True, print_background=True)

    assert len(rows(tab)) == tab.locator("tr.row").count()
    assert not tab.locator(".filters").is_visible()
    # The width of A4 across, within its margins.
    tab.set_viewport_size({"width": 1047, "height": 700})
    assert tab.evaluate("document.documentElement.scrollWidth") <= 1047


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("state", ["passed", "failed", "absent", "skipped"])
def test_cells_are_legible(opened, scheme, state):
    tab = opened(color_scheme=scheme)
    luminance = """cell => ['color', 'backgroundColor'].map(name => {
        const rgb = getComputedStyle(cell)[name].match(/[\\d.]+/g).slice(0, 3);
        const [r, g, b] = rgb.map(v => v / 255).map(
            v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; })"""
    both = tab.locator(f"summary.{state}").first.evaluate(luminance)

    # Web Content Accessibility Guidelines 2.2, contrast (minimum), level AA.
    assert (max(both) + 0.05) / (min(both) + 0.05) >= 4.5


def test_rows_and_columns_are_chosen_by_mouse(opened):
    tab = opened()
    assert rows(tab) == ALL

    tab.get_by_text("where a case fails").click()
    assert rows(tab) == ["an empty batch"]
    tab.get_by_text("where one of keras_bnx fails").click()
    assert rows(tab) == ["an empty batch"]
    tab.get_by_label("PyTorch", exact=True).click()
    # It failed on JAX alone.
    assert rows(tab) == [] and tab.get_by_text("There is no such row").is_visible()
    assert headings(tab) == ["PyTorch, CPU", "PyTorch, GPU"]
    tab.get_by_text("where a case fails").click()
    assert rows(tab) == ["an empty batch"]
    assert not tab.get_by_text("There is no such row").is_visible()
    tab.get_by_role("group", name="Rows").get_by_label("all").click()
    assert rows(tab) == ALL and headings(tab) == ["PyTorch, CPU", "PyTorch, GPU"]


def test_rows_and_columns_are_chosen_by_keyboard(opened):
    tab = opened()
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowRight")
    assert rows(tab) == ["an empty batch"]
    tab.keyboard.press("Tab")
    tab.keyboard.press("ArrowRight")  # TensorFlow, which wasn't run
    assert rows(tab) == [] and headings(tab) == ["TensorFlow, CPU", "TensorFlow, GPU"]
    tab.keyboard.press("ArrowRight")
    assert rows(tab) == ["an empty batch"]
    assert headings(tab) == ["JAX, CPU", "JAX, GPU"]


@pytest.mark.parametrize("width", [1400, 390])
def test_a_cell_opens_to_its_cases(opened, width):
    tab = opened(width=width)
    failed = tab.locator("summary.failed").first
    failed.click()
    panel = tab.locator("details[open] .panel")
    assert panel.count() == 1 and panel.is_visible()
    text = panel.inner_text()
    assert "keras_bnx on JAX, CPU: an empty batch" in text
    assert "the reason of two" in text and "outputs: got 3" in text
    box = panel.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= width

    # Another closes it, by keyboard, and itself.
    tab.keyboard.press("Tab")
    tab.keyboard.press("Enter")
    assert panel.count() == 1 and "Keras on JAX, CPU" in panel.inner_text()
    tab.keyboard.press("Enter")
    assert panel.count() == 0


@pytest.mark.parametrize("width", [1400, 390])
def test_what_a_backend_lacks_is_said_in_words(opened, width):
    tab = opened(width=width)
    tab.get_by_label("NumPy", exact=True).check()
    cell = tab.locator("summary.skipped")
    assert cell.count() == 1 and cell.is_visible()
    assert cell.inner_text().split() == "2 need gradients or fit 0.7".split()
    cell.click()
    text = tab.locator("details[open] .panel").inner_text()
    assert "needs gradients, which NumPy lacks" in text

    # No failure, so no filter for failures finds it.
    tab.get_by_text("where a case fails").click()
    assert rows(tab) == [] and tab.get_by_text("There is no such row").is_visible()
