"""The live page, in a real Chromium without a screen."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from playwright.async_api import async_playwright, expect

from agent.demo.broker import free_port
from agent.web.page import FILES, FOLDER

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SCREENSHOTS = Path(__file__).parents[1] / "screenshots"  # for people to look at
FLAGS = (
    "--no-sandbox",  # it refuses to run as root with one
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
MOST_BYTES = 60_000
TOKEN = "a-token-of-16-bytes"
HOSTILE = "<img src=x onerror=alert(1)>"
# A daemon and a browser are started at once; nothing of it is timed.
PATIENT_MS = 20_000

expect.set_options(timeout=PATIENT_MS)


@pytest.fixture
async def browser():
    if CHROMIUM is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("Chromium is not installed")
    async with async_playwright() as playwright:
        opened = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        await opened.close()


@pytest.fixture
async def open_page(browser):
    """Open the page; `page.complaints` has what the browser had to say of it."""

    async def open_at(address, **options):
        context = await browser.new_context(**options)
        page = await context.new_page()
        page.set_default_timeout(PATIENT_MS)
        page.complaints = []
        page.on("console", lambda said: page.complaints.append(said.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: page.complaints.append(dialog.message))
        await page.goto(f"http://{address}/")
        return page

    return open_at


@pytest.fixture
def listen():
    return f"127.0.0.1:{free_port()}"


async def run_job(program, digits, job_id, **parameters):
    await program.submit("digits", digits.job(job_id, **parameters))
    return await program.answer(job_id)


def row(page, text):
    return page.locator("#jobs tr", has_text=text)


async def test_the_page_shows_the_device_and_each_job_as_it_comes(
    start_daemon, configure, listen, open_page, program, digits, device, cloud
):
    await start_daemon(configure(cloud=cloud, http={"listen": listen}))
    page = await open_page(listen)
    await expect(page.locator("#link")).to_have_text("live")
    await expect(page.locator("#device")).to_have_text(device)
    await expect(page.locator("#routes tr")).to_have_count(2)
    await expect(page.locator("#routes")).to_contain_text("cloud:lab")
    await expect(page.locator("#none")).to_be_visible()
    await run_job(program, digits, "first")
    await expect(row(page, "first")).to_contain_text("local")
    await expect(row(page, "first")).to_contain_text("preferred")
    await expect(row(page, "first").locator("td").last).to_have_text(re.compile(r"\d [mµ]?s"))
    await run_job(program, digits, "second", placement="only_cloud")
    await expect(row(page, "second")).to_contain_text("cloud:lab")
    await expect(page.locator("#jobs tr").first).to_contain_text("second")
    await expect(page.locator("#chart-latency svg")).to_have_attribute(
        "aria-label", re.compile(r"local [\d.]+ [mµ]?s, cloud:lab [\d.]+ [mµ]?s")
    )
    learned = page.locator("#estimates tr", has_text="digits").first.locator("td").last
    await expect(learned).to_have_text("1")
    await expect(page.locator("#controls")).to_be_hidden()
    assert page.complaints == []


async def test_a_click_on_a_job_gives_its_explanation(
    start_daemon, configure, listen, open_page, program, digits, edgewise
):
    config = configure(http={"listen": listen})
    await start_daemon(config)
    page = await open_page(listen)
    await expect(page.locator("#link")).to_have_text("live")
    await run_job(program, digits, "asked")
    told = page.locator("#told")
    # It is on record a moment after it is answered.
    for _ in range(100):
        await page.get_by_role("button", name="asked").press("Enter")
        await expect(told).to_have_text(re.compile(r"Decision 1 of 1|No decision"))
        if "Decision 1" in await told.inner_text():
            break
        await page.keyboard.press("Escape")
    explained = await edgewise("explain", "asked", "--config", config)
    assert "Policy 'prefer-local' chose the local route" in explained.out
    sentences = [line for line in explained.out.splitlines() if line.endswith(".")]
    for sentence in sentences:
        await expect(told).to_contain_text(sentence)
    await page.keyboard.press("Escape")
    await expect(page.locator("#why")).to_be_hidden()
    await page.get_by_label("Job", exact=True).fill("nobody")
    await page.get_by_role("button", name="Explain", exact=True).click()
    await expect(told).to_have_text("No decision on job 'nobody' is on record.")
    assert [said for said in page.complaints if "404" not in said] == []


async def test_the_page_goes_on_after_a_restart_with_what_is_on_record(
    start_daemon, configure, listen, open_page, program, digits
):
    config = configure(http={"listen": listen})
    daemon = await start_daemon(config)
    page = await open_page(listen)
    await expect(page.locator("#link")).to_have_text("live")
    await run_job(program, digits, "before")
    await expect(row(page, "before")).to_be_visible()
    daemon.signal(signal.SIGTERM)
    assert await daemon.ended() == 0
    await expect(page.locator("#link")).to_have_text("no connection")
    program.forget()
    await start_daemon(config)
    await expect(page.locator("#link")).to_have_text("live")
    await run_job(program, digits, "after")
    await expect(row(page, "after")).to_have_count(1)
    await expect(row(page, "before")).to_have_count(1)
    assert [said for said in page.complaints if "net::ERR" not in said] == []


async def test_what_comes_over_the_wire_is_shown_as_text(
    start_daemon, configure, listen, open_page, program, digits
):
    await start_daemon(configure(http={"listen": listen}))
    page = await open_page(listen)
    await expect(page.locator("#link")).to_have_text("live")
    await program.submit(HOSTILE, digits.job("hostile"))
    assert (await program.answer("hostile"))["parameters"]["code"] == "unknown_model"
    await expect(row(page, "hostile").locator(".model")).to_have_text(HOSTILE)
    await expect(row(page, "hostile")).to_contain_text("unknown model")
    assert await page.locator("img").count() == 0
    await page.get_by_label("Job", exact=True).fill(HOSTILE)
    await page.get_by_role("button", name="Explain", exact=True).click()
    await expect(page.locator("#why-title")).to_have_text(f"Job {HOSTILE}")
    await expect(page.locator("#told")).to_have_text("This can't be a job's id.")
    assert await page.locator("img").count() == 0
    # The policy of its content holds even against a script that breaks the rule.
    refused = await page.evaluate(
        "() => { try { document.body.innerHTML = '<b>'; } catch (e) { return e.name; } }"
    )
    assert refused == "TypeError"


async def test_commands_are_there_with_the_token_only(
    start_daemon, configure, listen, open_page, tmp_path
):
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o600)
    await start_daemon(configure(http={"listen": listen, "token_file": str(file)}))
    page = await open_page(listen)
    await page.get_by_label("token").fill("wrong")
    await page.get_by_role("button", name="Open").click()
    await expect(page.locator("#token-said")).to_have_text("The device did not take that token.")
    await page.get_by_label("token").fill(TOKEN)
    await page.get_by_role("button", name="Open").click()
    await expect(page.locator("#link")).to_have_text("live")
    await page.get_by_role("button", name="Pause").click()
    await expect(page.locator("#control-said")).to_have_text("Paused.")
    await expect(page.locator("#tiles")).to_contain_text("paused")
    await page.get_by_role("button", name="Resume").click()
    await expect(page.locator("#control-said")).to_have_text("Resumed.")
    await page.get_by_label("Policy").select_option("local")
    await page.get_by_role("button", name="Switch").click()
    await expect(page.locator("#control-said")).to_have_text("Switched.")
    await expect(page.locator("#tiles div", has_text="Policy")).to_contain_text("local")
    # Kept for this tab alone.
    await page.reload()
    await expect(page.locator("#link")).to_have_text("live")
    assert [said for said in page.complaints if "401" not in said] == []


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("kind", "width"), [("desk", 1200), ("phone", 390)])
async def test_the_page_fits_its_screen(
    start_daemon, configure, listen, open_page, program, digits, cloud, theme, kind, width
):
    await start_daemon(configure(cloud=cloud, http={"listen": listen}))
    size = {"width": width, "height": 900}
    page = await open_page(listen, color_scheme=theme, viewport=size)
    await expect(page.locator("#link")).to_have_text("live")
    for number in range(12):
        where = "only_cloud" if number % 3 == 0 else "auto"
        await run_job(program, digits, f"frame-{number:04}", placement=where)
    await program.submit("what-is-this", digits.job("frame-0012"))
    await expect(row(page, "frame-0012")).to_be_visible()
    # What is drawn in a chart is what is over: a moment later.
    drawn = re.compile(r"M[\d.]+ [\d.]+h0L")
    await expect(page.locator("#chart-rate path.r0")).to_have_attribute("d", drawn)
    SCREENSHOTS.mkdir(exist_ok=True)
    await page.screenshot(path=SCREENSHOTS / f"page-{kind}-{theme}.png", full_page=True)
    wide = await page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width
    await page.get_by_role("button", name="frame-0001").click()
    await expect(page.locator("#told")).to_contain_text("Decision 1 of 1")
    await page.screenshot(path=SCREENSHOTS / f"why-{kind}-{theme}.png")
    assert page.complaints == []


def test_all_of_the_page_is_under_60_kb():
    assert sum((FOLDER / name).stat().st_size for name, _ in FILES.values()) < MOST_BYTES
