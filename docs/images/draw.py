"""Draw the pictures of docs/concepts.md: `python docs/images/draw.py [DIRECTORY]`.

The orders are those that npstream computes. Tested in tests/end_to_end/test_docs.py.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

import npstream

WIDTH = 760
COLORS = ["#9ecae1", "#fdd0a2", "#a1d99b", "#dadaeb", "#fcbba1", "#c7e9c0", "#fee391", "#d9d9d9"]
INK, MUTED, ACCENT = "#1f2328", "#59636e", "#c2410c"


class Picture:
    """Shapes on a white card, from the top to the bottom."""

    def __init__(self, name: str, title: str, height: int) -> None:
        self.name, self.height = name, height
        self.shapes = [
            f"<title>{escape(title)}</title>",
            f'<rect x="0" y="0" width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, fill: str, text: str = "",
            stroke: str = INK, line: float = 1) -> None:  # fmt: skip
        self.shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2" fill="{fill}" '
            f'stroke="{stroke}" stroke-width="{line:g}"/>'
        )
        if text:
            self.text(x + width / 2, y + height / 2 + 4, text, anchor="middle")

    def text(self, x: float, y: float, text: str, anchor: str = "start", color: str = INK,
             size: int = 12) -> None:  # fmt: skip
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{color}" font-size="{size}" '
            f'font-family="DejaVu Sans, Helvetica, Arial, sans-serif">{escape(text)}</text>'
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float, color: str = MUTED) -> None:
        self.shapes.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{color}" '
            'stroke-width="1.5" marker-end="url(#head)"/>'
        )

    def cells(self, x: float, y: float, texts: Iterable[object], fills: Iterable[str],
              width: float = 22, height: float = 24) -> None:  # fmt: skip
        for number, (text, fill) in enumerate(zip(texts, fills, strict=True)):
            self.box(x + number * width, y, width, height, fill, str(text))

    def svg(self) -> str:
        head = (
            '<defs><marker id="head" markerWidth="8" markerHeight="8" refX="6" refY="3" '
            f'orient="auto"><path d="M0,0 L6,3 L0,6 z" fill="{MUTED}"/></marker></defs>'
        )
        return "\n".join([
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.height}" '
            f'width="{WIDTH}" height="{self.height}" role="img">',
            head, *self.shapes, "</svg>\n",
        ])  # fmt: skip


def shard() -> Picture:
    picture = Picture(
        "shard", "A dataset is an index and shards; a shard is a head and samples", 210
    )
    files = ["index.json", "index.msgpack", "shard.00000.mds", "shard.00001.mds", "shard.00002.mds"]
    fills = ["#f6f8fa", "#f6f8fa", *COLORS[:3]]
    picture.text(20, 28, "a dataset: a directory, or a prefix of a bucket", color=MUTED)
    for number, (name, fill) in enumerate(zip(files, fills, strict=True)):
        picture.box(20 + number * 145, 40, 135, 34, fill, name)
    picture.arrow(522, 76, 400, 112)
    picture.text(20, 108, "one shard", color=MUTED)
    picture.box(20, 120, 90, 40, "#f6f8fa", "head")
    for number in range(9):
        picture.box(110 + number * 70, 120, 70, 40, COLORS[1], f"sample {number + 20}")
    picture.text(20, 184, "The head has the number of samples, where each begins, and the columns.")
    picture.text(
        20, 201, "The index has the number of samples, the size and the hashes of each shard."
    )
    return picture


def chunk() -> Picture:
    picture = Picture("chunk", "A shard is fetched by chunks, or by single samples", 190)
    picture.text(20, 28, "one shard of 64 MiB: a head and 16 chunks of 4 MiB", color=MUTED)
    picture.box(20, 40, 40, 40, "#f6f8fa", "head")
    wanted = {3, 4, 11}
    for number in range(16):
        fill = COLORS[0] if number in wanted else "#ffffff"
        picture.box(60 + number * 42, 40, 42, 40, fill, str(number))
    picture.box(60 + 8 * 42 + 12, 40, 4, 40, ACCENT, stroke=ACCENT)
    picture.arrow(60 + 4 * 42, 84, 150, 122)
    picture.text(20, 138, "a batch has many samples of chunks 3, 4 and 11:")
    picture.text(
        20, 155, "they are fetched, verified and cached as a whole; 3 and 4 by one request"
    )
    picture.arrow(60 + 8 * 42 + 14, 84, 560, 122)
    picture.text(470, 138, "ds[i]: the sample alone,", color=ACCENT)
    picture.text(470, 155, "by one request for its bytes", color=ACCENT)
    return picture


def view() -> Picture:
    picture = Picture("view", "Views of views select rows and read nothing", 230)
    rows = list(range(30))
    white = ["#ffffff"] * 30

    def fills(chosen: Iterable[int]) -> list[str]:
        return [
            COLORS[2] if row in set(chosen) else fill for row, fill in zip(rows, white, strict=True)
        ]

    picture.text(20, 26, "ds", color=MUTED)
    picture.cells(20, 34, rows, [COLORS[0]] * 30)
    first = rows[4:20]
    picture.text(20, 82, "ds[4:20]", color=MUTED)
    picture.cells(20, 90, rows, fills(first))
    second = first[::-3]
    picture.text(
        20, 138, f"ds[4:20][::-3]: rows {', '.join(map(str, second))}, in this order", color=MUTED
    )
    picture.cells(20, 146, rows, fills(second))
    picture.text(
        20,
        200,
        "A view holds row numbers. Nothing is read until load(), ds.iter, or a function of NumPy.",
    )
    picture.text(20, 217, "Only the chunks of the rows in the last view are read.")
    return picture


CHUNKS, ROWS = 8, 64


def dataset(directory: str) -> npstream.Dataset:
    """Return 64 samples in 8 chunks of 8: each shard of a dataset this small is one chunk."""
    path = Path(directory) / "numbers"
    with npstream.Writer(path, columns={"x": "int64"}, shard_size=_shard_size()) as writer:
        for row in range(ROWS):
            writer.write({"x": row})
    ds = npstream.open(path)
    assert len(ds.shards) == CHUNKS
    return ds


def _shard_size() -> int:
    """Return the smallest `shard_size` with which 16 samples of one number fill two shards."""
    for size in range(64, 4096):
        with tempfile.TemporaryDirectory() as directory:
            try:
                with npstream.Writer(
                    f"{directory}/a", columns={"x": "int64"}, shard_size=size
                ) as writer:
                    for row in range(16):
                        writer.write({"x": row})
            except ValueError:  # one sample does not fit
                continue
            if len(npstream.open(f"{directory}/a").shards) == 2:
                return size
    raise AssertionError("no size of shards holds eight samples")


def order(ds: npstream.Dataset) -> Picture:
    picture = Picture(
        "order", "An epoch's order, for blocks of several sizes, and the parts of two ranks", 300
    )
    per_chunk = ROWS // CHUNKS
    size = sum(ds.shards["bytes"])
    settings = [
        (0, "block=0: the stored order"),
        (size // 4, "block: a quarter of the data"),
        (None, "block=None: all samples at once"),
    ]
    for number, (block, title) in enumerate(settings):
        y = 24 + number * 64
        rows = (
            ds.order(seed=0, block=block, lanes=1)[:] if block else ds.order(seed=0, block=block)[:]
        )
        picture.text(20, y, title, color=MUTED)
        picture.cells(
            20, y + 8, [""] * ROWS, [COLORS[row // per_chunk] for row in rows], width=11.25
        )
    rows = ds.order(seed=0, block=None)[:16]
    picture.text(
        20,
        222,
        "the first two steps: the global batch of 8 is dealt to two ranks of 4 in turn",
        color=MUTED,
    )
    for position, row in enumerate(rows):
        step, place = divmod(position, 8)
        x = 20 + step * 380 + place * 42
        picture.box(x, 232, 42, 26, COLORS[row // per_chunk], str(row))
        picture.text(x + 21, 276, f"rank {position % 2}", anchor="middle", color=MUTED, size=10)
    return picture


def lane(ds: npstream.Dataset) -> Picture:
    picture = Picture("lane", "Chunks are laid end to end over lanes, which take turns", 250)
    per_chunk = ROWS // CHUNKS
    rows = ds.order(seed=0, block=sum(ds.shards["bytes"]) // 4, lanes=2)[:]
    for number in range(2):
        y = 30 + number * 62
        picture.text(
            20,
            y,
            f"lane {number}: a permutation of its chunks, shuffled within blocks",
            color=MUTED,
        )
        mine = rows[number::2]
        picture.cells(20, y + 8, mine, [COLORS[row // per_chunk] for row in mine], width=22)
    picture.text(20, 160, "the order takes a sample of each lane in turn", color=MUTED)
    picture.cells(20, 168, rows[:32], [COLORS[row // per_chunk] for row in rows[:32]], width=22)
    picture.text(20, 222, "One color is one chunk. Two machines read one lane each:")
    picture.text(
        20, 239, "so each machine fetches and caches only half of the chunks, in every epoch."
    )
    return picture


def block(ds: npstream.Dataset) -> Picture:
    picture = Picture("block", "Samples are permuted within blocks of a lane", 200)
    per_chunk, size = ROWS // CHUNKS, int(sum(ds.shards["bytes"]))
    rows = ds.order(seed=0, block=size // 4, lanes=1)[:32]
    width = 22
    picture.text(
        20,
        26,
        "a lane with blocks of a quarter of the data: which chunk each sample is of",
        color=MUTED,
    )
    picture.cells(20, 34, rows, [COLORS[row // per_chunk] for row in rows], width=width)
    for number in range(2):
        x = 20 + number * 16 * width
        picture.box(
            x,
            66,
            16 * width - 4,
            20,
            "#f6f8fa",
            f"block {number}: {len(set(rows[number * 16 : number * 16 + 16] // per_chunk))} chunks",
        )
    picture.text(20, 120, "A block is what must be in memory or in the cache at one time.")
    picture.text(
        20, 138, "A large block shuffles better; a small one needs less memory and fewer requests."
    )
    picture.text(20, 156, "With m chunks in a block, the mean of a batch of b samples varies about")
    picture.text(20, 174, "sqrt(1 + (b - 1) / m) times as much as in a full shuffle, at worst.")
    return picture


def cache() -> Picture:
    picture = Picture("cache", "All processes of a user share the chunks on a local disk", 260)
    picture.box(20, 40, 180, 60, "#f6f8fa", "object store: all chunks")
    picture.text(300, 30, "the cache: one sparse file for each shard", color=MUTED)
    present = [{0, 1, 5, 6}, {2}, {0, 3, 4, 7}]
    for number, chunks in enumerate(present):
        for place in range(8):
            fill = COLORS[number] if place in chunks else "#ffffff"
            picture.box(300 + place * 34, 40 + number * 32, 34, 26, fill)
    picture.arrow(204, 70, 294, 70)
    picture.text(214, 62, "verified", color=MUTED, size=10)
    for number, name in enumerate(["rank 0", "rank 1", "a notebook"]):
        picture.box(300 + number * 98, 180, 90, 28, COLORS[3], name)
        picture.arrow(345 + number * 98, 178, 345 + number * 98, 140)
    picture.text(20, 140, "White: not fetched, takes no room.")
    picture.text(20, 158, "At the limit, the chunks whose")
    picture.text(20, 176, "next use is last are removed first.")
    picture.text(
        20,
        240,
        "A chunk is fetched once for all processes; a killed process leaves nothing that others wait for.",
    )
    return picture


def draw(directory: Path) -> None:
    """Write all pictures."""
    with tempfile.TemporaryDirectory() as scratch, dataset(scratch) as ds:
        pictures = [shard(), chunk(), lane(ds), block(ds), view(), cache(), order(ds)]
    for picture in pictures:
        (directory / f"{picture.name}.svg").write_text(picture.svg())


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
