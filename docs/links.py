"""Check the external links of the documents. It needs the network, so the tests do not run it.

`python docs/links.py` checks those of README, CHANGELOG, docs/ and docstrings;
`python docs/links.py FILE...` those of some files. The exit status is 1 if a link is broken.

Tested in tests/end_to_end/test_links.py.
"""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\((https?://[^\s)]+)\)|<(https?://[^\s>]+)>")
BARE_LINK = re.compile(r"https?://[^\s)>\"'`,]*[^\s)>\"'`,.:;]")
SECONDS = 30


def find_links(paths: list[Path]) -> dict[str, list[str]]:
    """Return the external links of files, each with its places: a file and a line.

    In pages and modules, these are links in Markdown and URLs in angle brackets. In modules, they
    are also the URLs in lines that begin with "Source".
    """
    places = defaultdict(list)
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            links = [match[1] or match[2] for match in LINK.finditer(line)]
            if path.suffix == ".py" and re.match(r"\s*(Source|# Source)", line):
                links = BARE_LINK.findall(line)
            for link in links:
                places[link.partition("#")[0]].append(f"{path}:{number}")
    return dict(places)


def find_problem(url: str) -> str:
    """Return what is wrong with a link; an empty str if it works."""
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0 (docs/links.py)"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            response.read(1)
    except urllib.error.HTTPError as error:
        return f"answers {error.code}"
    except OSError as error:
        return f"cannot be reached: {error}"
    return ""


def main(arguments: list[str]) -> int:
    """Print the broken links; return the exit status."""
    paths = [Path(argument) for argument in arguments]
    if not paths:
        paths = [ROOT / "README.md", ROOT / "CHANGELOG.md"]
        paths += [
            *sorted((ROOT / "docs").rglob("*.md")),
            *sorted((ROOT / "npstream").rglob("*.py")),
        ]
    links = find_links(paths)
    with ThreadPoolExecutor(8) as pool:
        problems = list(pool.map(find_problem, links))
    for (link, places), problem in zip(links.items(), problems, strict=True):
        if problem:
            print(f"{link} {problem}: {', '.join(places)}")
    print(f"{len(links)} links, {sum(map(bool, problems))} of them broken")
    return 1 if any(problems) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
