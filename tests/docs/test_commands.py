"""What the documentation tells a reader to do works as it stands, in the order of each page."""

from __future__ import annotations

import re

import pytest

from tests.docs.blocks import PAGES, ROOT, Block, Reader, blocks_of

BLOCKS = {page: blocks_of(page) for page in PAGES}
NOT_RUN = [block for blocks in BLOCKS.values() for block in blocks if block.reason_not_to_run]


@pytest.mark.parametrize(
    "page",
    [page for page, blocks in BLOCKS.items() if any(not block.reason_not_to_run for block in blocks)],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_the_commands_of_a_page_run(page, tmp_path):
    with Reader(tmp_path, BLOCKS[page]) as reader:
        for block in BLOCKS[page]:
            if not block.reason_not_to_run:
                reader.run(block)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.name)
def test_a_block_that_is_not_run_says_why(block: Block):
    pytest.skip(f"{block.name} is not run: {block.reason_not_to_run}")


def test_commands_stand_in_blocks_that_are_run():
    fences = [fence for page in PAGES for fence in re.findall(r"^```(\w+)", page.read_text(), re.MULTILINE)]
    assert "console" in fences
    assert not {"bash", "sh", "shell", "pycon"} & set(fences)
