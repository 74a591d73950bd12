"""Targets of `fuzz`: datasets in directories and stores, caches, unfinished builds, and states."""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
import shutil
import struct
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import fsspec
import golden_data as golden
import saved_states
from fuzz_mutations import BLOB_CHANGES, SIDECAR_CHANGES, Files, edit_state, mutate
from fuzz_reading import DOCUMENTED_ERRORS, Case, Report, cases, read_damaged, write_annotated
from guards import guarded_array

import npstream
from npstream._core import memory
from npstream.errors import StorageError
from npstream.formats import chunks
from npstream.formats.compression import decompress
from npstream.shards import local as shards
from npstream.shards import manifest, point_reads
from npstream.shards import remote as remote_shards
from npstream.shards import table as fetch
from npstream.storage import local as store
from npstream.storage import requests
from npstream.tools import index_builder as build
from npstream.tools import scan as reread
from npstream.writing import sidecar as sidecar_module

RunMutation = Callable[[Report], Counter[str]]


class Kind(Protocol):
    """A kind of target."""

    def mutation(self, rng: random.Random) -> tuple[str, RunMutation]:
        """Choose a mutation; return its description, and a function that applies and undoes it."""


@contextmanager
def patched(values: dict[tuple[Any, str], Any]) -> Iterator[None]:
    """Replace attributes of modules within the block."""
    before = {(module, name): getattr(module, name) for module, name in values}
    try:
        for (module, name), value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in before.items():
            setattr(module, name, value)


# Datasets in directories


class LocalDatasets:
    """Golden datasets in local directories."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.cases = cases()
        for case in self.cases:
            case.write(root / case.name)

    def mutation(self, rng: random.Random) -> tuple[str, RunMutation]:
        """Damage one or two files of a dataset."""
        case = rng.choice(self.cases)
        changed, damage = mutate(rng, case.files, case.compressed)
        return f"{case.name}: {damage}", partial(self._check, rng, case, changed)

    def _check(
        self, rng: random.Random, case: Case, changed: Files, report: Report
    ) -> Counter[str]:
        root = self._root / case.name
        for name, content in changed.items():
            (root / name).write_bytes(content)
        try:
            with patched(_random_patches(rng)):
                return read_damaged(partial(npstream.open, root), case, changed, rng, report)
        finally:
            for name in changed:
                (root / name).write_bytes(case.files[name])


class AnnotatedDatasets(LocalDatasets):
    """Local datasets whose index has annotations: dtypes, and the order of columns."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.cases = []
        for compression in (None, "zstd"):
            name = f"annotated-{compression}"
            write_annotated(root / name, compression)
            shutil.rmtree(root / name / "index.columns", ignore_errors=True)
            (root / name / "index.msgpack").unlink()
            self.cases.append(Case(name, root / name))


def _random_patches(rng: random.Random) -> dict[tuple[Any, str], Any]:
    """Return random replacements of module attributes.

    Some place files and buffers before a protected page. Others set limits so low that shards do
    not stay in memory.
    """
    patches: dict[tuple[Any, str], Any] = {}
    if rng.random() < 0.5:
        patches[store, "map_file"] = lambda path: guarded_array(Path(path).read_bytes(), 4)
        patches[shards, "decompress"] = lambda *args: guarded_array(decompress(*args), 4)
    if rng.random() < 0.2:
        patches[memory, "map_budget"] = lambda: 0
        patches[fetch, "_buffer_limit"] = lambda table: rng.choice((0, 5000))
    return patches


# Datasets in a store


def _use_small_chunks() -> None:
    """Set limits so low that small datasets have many chunks, and retry without a wait."""
    chunks.CHUNK_BYTES = 1 << 10
    requests._BACKOFF = 0.001
    remote_shards.SMALL_CHUNK = 0
    point_reads.MAX_SAMPLE_GAP = 0


def _remote_cases(root: Path) -> list[Case]:
    """Return datasets with side-cars: one of each format and compression, and annotated ones."""
    chosen: dict[Any, str] = {}
    for case in golden.cases():
        if case["readable"] is not True or not case["num_samples"] or case.get("unsafe"):
            continue
        entries = json.loads((golden.directory(case) / "index.json").read_text())["shards"]
        raw_files = [golden.directory(case) / entry["raw_data"]["basename"] for entry in entries]
        if entries[0].get("zip_data") and any(path.exists() for path in raw_files):
            continue  # the oracle cannot predict which of two files is read
        key = entries[0]["format"], entries[0]["compression"], bool(entries[0]["hashes"])
        chosen.setdefault(key, case["name"])
    for name in chosen.values():
        shutil.copytree(golden.directory(golden.case(name)), root / name)
        npstream.build_index(root / name)
    for compression in (None, "zstd"):
        write_annotated(root / f"annotated-{compression}", compression)
    return [Case(path.name, path) for path in sorted(root.iterdir())]


class RemoteDatasets:
    """Datasets with side-cars in a store."""

    def __init__(self, root: Path) -> None:
        _use_small_chunks()
        self._root = root
        self._store = fsspec.filesystem("memory")
        self._numbers = itertools.count()
        self.cases = _remote_cases(root / "datasets")
        for case in self.cases:
            for name, content in case.files.items():
                self._store.pipe_file(f"/fuzz/{case.name}/{name}", content)

    def mutation(self, rng: random.Random) -> tuple[str, RunMutation]:
        """Damage the side-car, its column files, or other files."""
        case = rng.choice(self.cases)
        columns = [name for name in case.files if name.startswith("index.columns/")]
        changed: Files = {}
        draw = rng.random()
        if draw < 0.45:
            name, change = "index.msgpack", rng.choice(SIDECAR_CHANGES)
        elif draw < 0.65:
            name, change = "index.msgpack", rng.choice(BLOB_CHANGES)
        elif draw < 0.8 and columns:
            name, change = rng.choice(columns), rng.choice(BLOB_CHANGES)
        else:
            sidecar = {"index.msgpack", *columns}
            others = {name: body for name, body in case.files.items() if name not in sidecar}
            changed, damage = mutate(rng, others, case.compressed)
            draw = 1.0  # neither the side-car nor a column file is damaged
        if draw < 1:
            changed = {name: change(rng, case.files[name])}
            damage = f"{change.__name__} {name}"
        is_removed = draw < 0.8 and rng.random() < 0.03
        if is_removed:
            damage = f"removed {', '.join(changed)}"
        # These changes also update the hashes, so npstream cannot detect them.
        trusted = change in SIDECAR_CHANGES if draw < 0.65 else False
        # Reads of single samples do not compare a shard's head with the index, so a changed index
        # may give wrong values.
        compares = not trusted and "index.json" not in changed
        run = partial(self._check, rng, case, changed, is_removed, compares)
        return f"{case.name}: {damage}", run

    def _check(
        self,
        rng: random.Random,
        case: Case,
        changed: Files,
        is_removed: bool,
        compares: bool,
        report: Report,
    ) -> Counter[str]:
        url = f"memory://fuzz/{case.name}"
        cache = self._root / f"cache-{next(self._numbers)}"
        values: dict[tuple[Any, str], Any] = {}
        if rng.random() < 0.3:
            values[manifest, "LARGE_INDEX"] = 0
        if rng.random() < 0.3:
            values[manifest, "LARGE_SIDECAR"] = 0
        for name, content in changed.items():
            if is_removed:
                self._store.rm_file(f"/fuzz/{case.name}/{name}")
            else:
                self._store.pipe_file(f"/fuzz/{case.name}/{name}", content)
        try:
            with patched(values):
                opened = partial(
                    npstream.open,
                    url,
                    cache=cache,
                    cache_limit="1PB",
                    retries=0,
                    implicit_read_limit=None,
                )
                reads = read_damaged(opened, case, changed, rng, report, compares)
            _report_unexpected("verify_dataset()", lambda: npstream.verify_dataset(url), report)
            if rng.random() < 0.1:
                out = self._root / "built"
                _report_unexpected("build_index()", lambda: npstream.build_index(url, out), report)
                shutil.rmtree(out, ignore_errors=True)
            return reads
        finally:
            shutil.rmtree(cache, ignore_errors=True)
            for name in changed:
                self._store.pipe_file(f"/fuzz/{case.name}/{name}", case.files[name])


def _report_unexpected(what: str, call: Callable[[], Any], report: Report) -> Any:
    """Call a function, and report undocumented exceptions."""
    try:
        return call()
    except DOCUMENTED_ERRORS:
        return None
    except Exception:
        report(f"{what} raised {traceback.format_exc(limit=-3)}")
        return None


# Caches


class CacheDirectory(RemoteDatasets):
    """The directory of a cache for an undamaged dataset."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._templates: dict[str, Path] = {}

    def mutation(self, rng: random.Random) -> tuple[str, RunMutation]:
        """Damage one to three entries of the directory, or the directory itself."""
        case = rng.choice(self.cases)
        return f"{case.name}: damaged cache", partial(self._check_cache, rng, case)

    def _template(self, case: Case) -> Path:
        """Return a cache directory that holds parts of a dataset."""
        if case.name not in self._templates:
            path = self._root / f"template-{case.name}"
            with npstream.open(f"memory://fuzz/{case.name}", cache=path) as ds:
                ds[: len(ds) // 2].prefetch()
                ds[-1]
                for name in ds.columns:
                    with suppress(OverflowError):
                        ds[[name]].load()
            self._templates[case.name] = path
        return self._templates[case.name]

    def _check_cache(self, rng: random.Random, case: Case, report: Report) -> Counter[str]:
        path = self._root / f"cache-{next(self._numbers)}"
        shutil.copytree(self._template(case), path)
        done = [damage_cache(rng, path) for _ in range(rng.choice((1, 1, 2, 3)))]
        directory_is_lost = not path.is_dir() or path.is_symlink()

        def report_with_damage(finding: str) -> None:
            report(f"{done}: {finding}")

        limit = rng.choice(("1MB", "16MB", None))
        opened = partial(
            npstream.open, f"memory://fuzz/{case.name}", cache=path, cache_limit=limit, timeout=5
        )
        # Cached bytes of shards, and the record of present pieces, are verified only on request.
        trusted = any(what.startswith("bytes of shard") for what in done)
        try:
            for _ in "12":  # the second run reads what the first run left
                reads = read_damaged(
                    opened, case, {}, rng, report_with_damage, compares=not trusted
                )
                if not (trusted or directory_is_lost) and (reads["raised"] or reads["refused"]):
                    report_with_damage("a damaged cache was reported as a damaged dataset")
            _report_unexpected("info()", lambda: npstream.cache.info(path), report_with_damage)
            _report_unexpected("clear()", lambda: npstream.cache.clear(path, 1), report_with_damage)
            return reads
        finally:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


_FOOTER = struct.Struct("<8sIQQ16s64s")  # magic, version, nbytes, pieces, stamp, key


def damage_cache(rng: random.Random, path: Path) -> str:
    """Damage an entry of a cache directory, or the directory; return a description."""
    if not path.is_dir():
        return "nothing"
    if rng.random() < 0.04:
        shutil.rmtree(path)
        return _replace_with_special_file(rng, path, "the directory")
    names = sorted(file.name for file in path.iterdir())
    random_name = f".{rng.randbytes(8).hex()}"
    key = rng.randbytes(16).hex()
    new = (f"{random_name}.reserved", f"{random_name}.tmp", f"{key}.shard", f"{key}.stored")
    if not names or rng.random() < 0.25:
        file = path / rng.choice(new)
        if rng.random() < 0.5:
            file.write_bytes(rng.randbytes(rng.randrange(300)))
            if rng.random() < 0.5:
                os.truncate(file, rng.choice((1 << 20, 1 << 40)))
            return f"new {file.name}"
        return _replace_with_special_file(rng, file, f"new {file.name}")
    file = path / rng.choice(names)
    if not file.is_file() or file.is_symlink() or file.stat().st_size > 1 << 24:
        return "nothing"
    content = file.read_bytes()
    if rng.random() < 0.25:
        return _replace_with_special_file(rng, file, file.suffix)
    draw = rng.random()
    if draw < 0.15:
        others = [name for name in names if name != file.name and (path / name).is_file()]
        if others:
            file.write_bytes((path / rng.choice(others)).read_bytes())
        return f"{file.name} is another's"
    if draw < 0.35 and len(content) >= _FOOTER.size:
        return _forge_footer(rng, file, content)
    change = rng.choice(BLOB_CHANGES)
    new_content = change(rng, content)
    file.write_bytes(new_content)
    body = len(content) - _FOOTER.size
    same = len(new_content) == len(content) and new_content[:body] == content[:body]
    if file.suffix == ".shard" and not same:
        return f"bytes of shard {file.name}: {change.__name__}"
    return f"{change.__name__} {file.name}"


def _forge_footer(rng: random.Random, file: Path, content: bytes) -> str:
    """Change a field of a footer; sometimes change the file's size to match."""
    fields = list(_FOOTER.unpack(content[-_FOOTER.size :]))
    body = content[: -_FOOTER.size]
    which = rng.randrange(1, 6)
    if which in (1, 2, 3):
        values = (0, 1, 2, fields[which] + 1, 2**31, 2**32 - 1)
        fields[which] = rng.choice(values if which == 1 else (*values, 2**40, 2**60, 2**64 - 1))
    else:
        fields[which] = rng.randbytes(len(fields[which]))
    size = fields[2] + fields[3] + _FOOTER.size
    file.write_bytes(body + _FOOTER.pack(*fields))
    if which in (2, 3) and rng.random() < 0.7 and size < 1 << 42:
        with open(file, "r+b") as opened:
            opened.truncate(size - _FOOTER.size)
            opened.seek(size - _FOOTER.size)
            opened.write(_FOOTER.pack(*fields))
    is_shard = file.suffix == ".shard"
    return f"{'bytes of shard' if is_shard else 'footer of'} {file.name}: field {which}"


def _replace_with_special_file(rng: random.Random, file: Path, what: str) -> str:
    """Replace a file by a directory, link, FIFO, empty or unreadable file."""
    if file.exists() or file.is_symlink():
        file.unlink()
    kinds = ("directory", "full directory", "link", "loop", "fifo", "empty", "unreadable")
    kind = rng.choice(kinds)
    match kind:
        case "directory":
            file.mkdir()
        case "full directory":
            file.mkdir()
            (file / "x").write_bytes(b"x")
        case "link":
            file.symlink_to(rng.choice(("/nowhere/at/all", "/etc/passwd", "/dev/zero")))
        case "loop":
            file.symlink_to(file.name)
        case "fifo":
            os.mkfifo(file)
        case "empty":
            file.touch()
        case _:
            file.touch(mode=0)
            if os.geteuid() == 0:
                os.chown(file, 54_321, -1)
    return f"{what} is a {kind}"


# Unfinished builds


class UnfinishedBuild:
    """The working directory of an interrupted `build_index`."""

    def __init__(self, root: Path) -> None:
        _use_small_chunks()
        build._SAVE_INTERVAL = 0
        reread._MAX_GROUP_SHARDS = 1
        self._root = root
        self._numbers = itertools.count()
        self._whole = root / "whole"
        npstream.write(
            self._whole,
            {"x": list(range(300)), "y": [k / 7 for k in range(300)], "text": ["text"] * 300},
            shard_size=1500,
        )
        self._files = {
            path.relative_to(self._whole).as_posix(): path.read_bytes()
            for path in self._whole.rglob("*")
            if path.is_file()
        }
        shutil.rmtree(self._whole / "index.columns")
        (self._whole / "index.msgpack").unlink()
        npstream.build_index(self._whole)
        self._expected = self._sidecar_files(self._whole)
        shutil.rmtree(self._whole / "index.columns")
        (self._whole / "index.msgpack").unlink()
        add = sidecar_module.SidecarBuilder.add

        calls = itertools.count()

        def add_or_interrupt(self: sidecar_module.SidecarBuilder, result: Any) -> None:
            if next(calls) == 4:  # the fifth shard
                raise KeyboardInterrupt
            add(self, result)

        try:
            with patched({(sidecar_module.SidecarBuilder, "add"): add_or_interrupt}):
                npstream.build_index(self._whole)
        except KeyboardInterrupt:
            pass

    @staticmethod
    def _sidecar_files(root: Path) -> Files:
        files = [root / "index.msgpack", *sorted((root / "index.columns").iterdir())]
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}

    def mutation(self, rng: random.Random) -> tuple[str, RunMutation]:
        """Damage one or two files of the working directory."""
        return "unfinished work", partial(self._check, rng)

    def _check(self, rng: random.Random, report: Report) -> Counter[str]:
        root = self._root / f"work-{next(self._numbers)}"
        shutil.copytree(self._whole, root)
        work = root / ".index.work"
        done = [self._damage(rng, work) for _ in range(rng.choice((1, 1, 2)))]
        lock = work / "lock"
        # Without its own directory and lock, a build may raise.
        is_lost = not work.is_dir() or work.is_symlink() or lock.is_symlink() or not lock.is_file()
        try:
            npstream.build_index(root)
            if self._sidecar_files(root) != self._expected:
                report(f"{done}: the side-car differs")
            return Counter(read=1)
        except DOCUMENTED_ERRORS as error:
            if not is_lost:
                report(f"{done}: {error}")
            return Counter(raised=1)
        except Exception:
            report(f"{done}: build_index() raised {traceback.format_exc(limit=-3)}")
            return Counter(raised=1)
        finally:
            shutil.rmtree(root)

    @staticmethod
    def _damage(rng: random.Random, work: Path) -> str:
        if not work.is_dir():
            return "nothing"
        if rng.random() < 0.03:
            shutil.rmtree(work)
            return _replace_with_special_file(rng, work, "the directory")
        file = rng.choice(sorted(work.iterdir()))
        if not file.is_file() or rng.random() < 0.2:
            if file.is_dir() and not file.is_symlink():
                return "nothing"
            return _replace_with_special_file(rng, file, file.name)
        if file.name == "state.json" and rng.random() < 0.6:
            state = edit_state(rng, json.loads(file.read_bytes()))
            file.write_text(json.dumps(state))
            return f"state.json is {state!r:.200}"
        change = rng.choice(BLOB_CHANGES)
        file.write_bytes(change(rng, file.read_bytes()))
        return f"{change.__name__} {file.name}"


# States


class SavedStates:
    """Saved states of iterations."""

    def __init__(self, root: Path) -> None:
        saved_states.write(root)
        self._sources = saved_states.open_sources(root)
        self._states: list[tuple[str, dict[str, Any]]] = []
        for name, make in saved_states.CASES.items():
            iteration = make(self._sources)
            items = saved_states.items(iteration)
            for _ in range(5):
                next(items)
            self._states.append((name, json.loads(json.dumps(iteration.state_dict()))))

    def mutation(self, rng: random.Random) -> tuple[str, RunMutation]:
        """Damage a state."""
        name, state = rng.choice(self._states)
        new = edit_state(rng, state)
        if rng.random() < 0.1:
            new = edit_state(rng, new)
        if rng.random() < 0.01:
            new = copy.deepcopy(rng.choice((None, [], "state", 7, {}, {"version": 1})))
        changed = "not a dict"
        if isinstance(new, dict):
            pairs = {
                key: new.get(key) for key in {**state, **new} if state.get(key) != new.get(key)
            }
            changed = _short_repr(pairs)
        return f"{name}: {changed}", partial(self._check, name, new)

    def _check(self, name: str, state: Any, report: Report) -> Counter[str]:
        iteration = saved_states.CASES[name](self._sources)
        before = iteration.state_dict()
        try:
            iteration.load_state_dict(state)
        except (ValueError, StorageError):
            if iteration.state_dict() != before:
                report("a rejected state had an effect")
            return Counter(raised=1)
        except TypeError as error:
            if isinstance(state, dict):
                report(f"load_state_dict() raised {error!r}: {traceback.format_exc(limit=-3)}")
            return Counter(raised=1)
        except Exception:
            report(f"load_state_dict() raised {traceback.format_exc(limit=-3)}")
            return Counter(raised=1)
        try:
            list(itertools.islice(saved_states.items(iteration), 3))
            iteration.state_dict()
        except Exception:
            report(f"continuing raised {traceback.format_exc(limit=-4)}")
        return Counter(read=1)


def _short_repr(value: Any) -> str:
    try:
        return repr(value)[:300]
    except RecursionError:
        return "something deep"


KINDS: dict[str, Callable[[Path], Kind]] = {
    "local": LocalDatasets,
    "annotated": AnnotatedDatasets,
    "remote": RemoteDatasets,
    "cache": CacheDirectory,
    "work": UnfinishedBuild,
    "states": SavedStates,
}
