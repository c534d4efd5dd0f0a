# SPDX-License-Identifier: Apache-2.0
"""The parts of documents that benchmarks and experiments write."""

import sys
from pathlib import Path


def replace(page, name, lines):
    """Puts lines between a page's markers of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = Path(page).read_text()
    if begin not in text or end not in text:
        sys.exit(f"{page} has no markers {begin} and {end}")
    head, rest = text.split(begin, 1)
    Path(page).write_text(head + begin + "\n" + "\n".join(lines) + "\n" + end + rest.split(end, 1)[1])
