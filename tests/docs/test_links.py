"""Every link within the project leads somewhere."""

from __future__ import annotations

import pytest
from pages.markdown import ROOT, anchors, links, pages

PAGES = pages()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_s_links_lead_to_files_and_headings_that_are_there(page):
    broken = []
    for line, target in links(page):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (ROOT / page).parent / path if path else ROOT / page
        if not there.exists():
            broken.append(f"{page}:{line}: {target}: no such file")
        elif anchor and anchor not in anchors(str(there.resolve().relative_to(ROOT))):
            broken.append(f"{page}:{line}: {target}: no such heading")
    assert broken == []


def test_the_index_leads_to_every_page_of_the_documentation():
    index = "docs/README.md"
    led_to = {target.partition("#")[0] for _, target in links(index)}
    documentation = {page for page in PAGES if page.startswith("docs/")} - {index}
    assert {page.removeprefix("docs/") for page in documentation} <= led_to
