"""Reading one sample: no plan, no kernel, a few microseconds."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from npstream._typing import Sample
from npstream.decode import decode_value
from npstream.formats import text
from npstream.lines import line_parser

if TYPE_CHECKING:
    from npstream.fetch import Fetcher
    from npstream.gather import Field
    from npstream.shards import Region

Decoder = Callable[[int, memoryview], Sample]
"""Makes a sample of its number and its bytes (text: preceded by `text.guard` bytes)."""


class SampleReader:
    """Reads samples one at a time, all with the same columns."""

    def __init__(self, fetcher: Fetcher, fields: Sequence[Field]) -> None:
        self._fetcher = fetcher
        self._fields = fields
        self._starts = fetcher.index.starts.data
        self._decoders: dict[int, tuple[Decoder, int]] = {}
        # Views of shards keep them in memory, so they go when the table does.
        self._table: object = None
        self._shards: dict[int, tuple[Any, ...]] = {}

    def __call__(self, sample: int) -> Sample:
        """Return the sample of that number."""
        fetcher = self._fetcher
        shard = bisect_right(self._starts, sample) - 1
        if fetcher.table is not self._table:
            self._shards = {}
            self._table = fetcher.current()
        view = self._shards.get(shard)
        if view is None:
            view = self._view(shard)
        first, data, offsets, begin, stride, decode, guard = view
        row = sample - first
        if stride:
            begin += row * stride
            return decode(sample, data[begin : begin + stride])  # type: ignore[no-any-return]
        at, end = offsets[row], offsets[row + 1]
        if not begin <= at <= end <= len(data):
            fetcher.damaged(sample, "its offsets do not fit the shard")
        return decode(sample, data[at - guard : end])  # type: ignore[no-any-return]

    def release(self) -> None:
        """Let go of the shards that samples were read from."""
        self._shards, self._table = {}, None

    def _view(self, shard: int) -> tuple[Any, ...]:
        region: Region = self._fetcher.region(shard)
        schema = int(self._fetcher.index.schema_of[shard])
        if schema not in self._decoders:
            self._decoders[schema] = _decoder(self._fetcher, schema, self._fields)
        view = (
            self._starts[shard],
            region.data.data,
            region.offsets.data,
            region.begin,
            region.stride,
            *self._decoders[schema],
        )
        if shard in self._fetcher.current().regions:
            self._shards[shard] = view
        return view


def _decoder(fetcher: Fetcher, schema: int, fields: Sequence[Field]) -> tuple[Decoder, int]:
    """Return what decodes the samples of a schema, and how many bytes it wants before them."""
    layout = fetcher.layouts[schema]
    if layout is None:
        parse = line_parser(fetcher, schema, [f.name for f in fields])
        guard = text.guard(fetcher.index.schemas[schema])
        return (lambda sample, line: parse(sample, bytes(line))), guard
    wanted = {f.name: f.encoding.decode for f in fields}
    names = fetcher.index.schemas[schema].names
    if layout.stride:
        places = layout.places
        plan = [(n, wanted[n], places[n].offset, places[n].size) for n in wanted]
        return _fixed_decoder(fetcher, [(n, d, at, at + (size or 0)) for n, d, at, size in plan]), 0
    columns = [(name, wanted.get(name), layout.places[name].size) for name in names]
    return _variable_decoder(fetcher, columns, layout.nvariable, list(wanted)), 0


def _fixed_decoder(
    fetcher: Fetcher, columns: list[tuple[str, Callable[[Any], Any], int, int]]
) -> Decoder:
    def decode(sample: int, data: memoryview) -> Sample:
        try:
            return {name: value(data[start:stop]) for name, value, start, stop in columns}
        except Exception:
            return {
                name: decode_value(fetcher, name, value, data[start:stop], sample)
                for name, value, start, stop in columns
            }

    return decode


def _variable_decoder(
    fetcher: Fetcher,
    columns: list[tuple[str, Callable[[Any], Any] | None, int | None]],
    nvariable: int,
    order: list[str],
) -> Decoder:
    sizes = struct.Struct(f"<{nvariable}I")
    head, nfixed = sizes.size, sum(size for _, _, size in columns if size is not None)
    in_order = [name for name, value, _ in columns if value is not None] == order

    def decode(sample: int, data: memoryview) -> Sample:
        lengths = sizes.unpack_from(data) if len(data) >= head else ()
        if head + nfixed + sum(lengths) != len(data):
            fetcher.damaged(sample, "the sizes of its columns do not add up to its own")
        values, at, variable = {}, head, 0
        for name, value, size in columns:
            if size is None:
                end = at + lengths[variable]
                variable += 1
            else:
                end = at + size
            if value is not None:
                try:
                    values[name] = value(data[at:end])
                except Exception:
                    values[name] = decode_value(fetcher, name, value, data[at:end], sample)
            at = end
        return values if in_order else {name: values[name] for name in order}

    return decode
