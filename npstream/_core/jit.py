"""The one door to Numba.

Importing Numba costs half a second and compiling a kernel about as much, so nothing here imports
or compiles before a kernel is worth that. A kernel is an ordinary Python function over arrays and
addresses; until then it runs as one.

Numba is imported, and kernels are compiled, in a thread of its own under one lock. An interrupt
ends the wait and not the work, other threads find all of it or nothing, and `os.fork` waits.

Tested in tests/_core/test_jit.py and tests/shards/test_kernels.py.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import os
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, SupportsInt, TypeVar

import numpy as np
from numpy.typing import NDArray

from npstream._core.log import log, warn

P = ParamSpec("P")
R = TypeVar("R")

SMALL_CALL_ROWS = 1 << 10
"""Rows up to which a call runs as plain Python while Numba is not loaded (about 10 us a row)."""

IMPORT_THRESHOLD = 1 << 15
"""Rows handled as plain Python, over the process's life, after which Numba pays for itself."""

COMPILE_THRESHOLD = 1 << 17
"""The same for kernels without compiled code on disk: to compile one takes up to two seconds."""

NOTICE_SECONDS = 2.0
"""Seconds of compiling after which the process says so."""

_lock = threading.RLock()
_loaded = False
_eager = False
_rows_in_python = 0
_seconds_compiling = 0.0
_noticed = False


class Kernel(Generic[P, R]):
    """A function that Numba compiles when that pays, without the GIL.

    Kernels may call kernels and the primitives below, by their own names.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self._function = function
        self._dispatcher: Any = None
        self._compiled: Callable[P, R] | None = None
        self._part: Any = None
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.compiled()(*args, **kwargs)

    def for_size(self, rows: int) -> Callable[P, R]:
        """Return what runs `rows` rows soonest: the compiled kernel, or its plain function."""
        global _rows_in_python
        if self._compiled is not None:
            return self._compiled
        # A lost update between threads only shifts the moment of the change.
        total = _rows_in_python + rows
        if not _eager and (
            (not _loaded and rows <= SMALL_CALL_ROWS and total <= IMPORT_THRESHOLD)
            or (total <= COMPILE_THRESHOLD and not self._is_on_disk())
        ):
            _rows_in_python = total
            return self.py_func
        return self.compiled()

    @property
    def is_loaded(self) -> bool:
        """Whether the kernel runs compiled without an import or a compilation for it."""
        return self._compiled is not None or (_loaded and self._is_on_disk())

    @functools.cached_property
    def py_func(self) -> Callable[P, R]:
        """The function as plain Python, and so the kernels that it calls."""
        return _linked(self._function, lambda called: getattr(called, "py_func", called))

    def compiled(self) -> Callable[P, R]:
        """Return Numba's dispatcher for this kernel."""
        if self._compiled is None:
            self._load()
            self._compiled = self._dispatcher
        return self._compiled

    def part(self) -> Any:
        """Return what kernels that call this one are linked with; see `_part_options`."""
        if self._part is None:
            import numba

            self._part = numba.njit(**_part_options(self._function))(_compilable(self._function))
        return self._part

    def _load(self) -> None:
        """Make the dispatcher, which compiles when it is called."""

        def load() -> None:
            if self._dispatcher is None:
                self._dispatcher = _dispatcher(self._function)

        if self._dispatcher is None:
            _run_apart(load)

    def _is_on_disk(self) -> bool:
        """Return whether there is compiled code of this kernel, if it is not out of date."""
        self._load()
        place = _place(self._dispatcher)
        return place is not None and bool(glob.glob(f"{glob.escape(place)}*.nbi"))


def kernel(function: Callable[P, R]) -> Kernel[P, R]:
    """Decorate a loop over arrays so that it runs compiled; see `Kernel`."""
    return Kernel(function)


def always_compile() -> None:
    """Have kernels run compiled from now on, however small the work."""
    global _eager
    _eager = True


def _linked(function: Callable[P, R], link: Callable[[Any], Any]) -> Callable[P, R]:
    """Copy a function, with something else in place of each kernel and primitive that it calls."""
    namespace = dict(function.__globals__)
    for name in function.__code__.co_names:
        called = namespace.get(name)
        if isinstance(called, Kernel | types.FunctionType):
            namespace[name] = link(called)
    linked = types.FunctionType(function.__code__, namespace, function.__name__)
    return functools.update_wrapper(linked, function)


# Loading and compiling.


def _run_apart(job: Callable[[], R], compiles: Any = None) -> R:
    """Run a job in a thread of its own, under the lock; say so if a dispatcher compiles long."""
    results: list[R] = []
    errors: list[BaseException] = []

    def run() -> None:
        global _seconds_compiling
        with _lock:
            began = time.perf_counter()
            try:
                results.append(job())
            except BaseException as error:
                errors.append(error)
            if compiles is not None:
                _seconds_compiling += time.perf_counter() - began

    thread = threading.Thread(target=run, name="npstream-compile")
    try:
        thread.start()
    except RuntimeError:  # no thread can be started while the interpreter ends
        run()
    else:
        if compiles is not None:
            thread.join(max(NOTICE_SECONDS - _seconds_compiling, 0.0))
            if thread.is_alive():
                _notice(compiles)
        thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _notice(dispatcher: Any) -> None:
    """Say that kernels are compiled: once in a process, and once for code that is kept."""
    global _noticed
    if _noticed:
        return
    _noticed = True
    place = _place(dispatcher)
    name = f"{dispatcher.py_func.__module__}.{dispatcher.py_func.__name__}"
    if place is None:
        when = "in every process, as no directory can be written: set NUMBA_CACHE_DIR to one"
    else:
        when = f"once on this machine; the code is kept in {os.path.dirname(place)}"
        try:
            os.close(os.open(f"{place}.noticed", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
        except OSError as error:  # the line comes again, then
            log("cannot keep compiled code in %s: %s", os.path.dirname(place), error)
    warn("npstream compiles its kernels (now %s): seconds, %s", name, when)


def _place(dispatcher: Any) -> str | None:
    """Return how the paths of a kernel's compiled code begin; None if none is kept."""
    if (directory := dispatcher.stats.cache_path) is None:
        return None
    code = dispatcher.py_func.__code__
    stem = os.path.splitext(os.path.basename(code.co_filename))[0]
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    name = f"{stem}.{dispatcher.py_func.__qualname__}".replace("<", "").replace(">", "")
    return os.path.join(directory, f"{name}-{code.co_firstlineno}.{python}")


def _dispatcher(function: Callable[..., Any]) -> Any:
    """Return Numba's dispatcher of a kernel; it compiles apart."""
    global _loaded
    _primitives()
    import numba

    options = {**_options(function), "no_cfunc_wrapper": True}
    linked = _compilable(function)
    try:
        dispatcher: Any = numba.njit(cache=True, **options)(linked)
    except RuntimeError:
        # No place to keep compiled code: neither beside the source nor in the home directory.
        dispatcher = numba.njit(**options)(linked)
    compile_now = dispatcher._compile_for_args

    def compile_apart(*args: Any, **kwargs: Any) -> Any:
        return _run_apart(lambda: _compile(dispatcher, compile_now, args, kwargs), dispatcher)

    dispatcher._compile_for_args = compile_apart
    _loaded = True
    return dispatcher


def _compile(dispatcher: Any, compile_now: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Compile a kernel for arguments; what goes wrong with files of compiled code is no error."""
    from numba.core.caching import NullCache

    try:
        return compile_now(*args, **kwargs)
    except Exception as error:
        if isinstance(dispatcher._cache, NullCache):
            raise
        # A full disk or a damaged file can raise anything. An error of the kernel is raised again.
        log("compiling %s without its file: %r", dispatcher.py_func.__name__, error)
        dispatcher._cache = NullCache()
        return compile_now(*args, **kwargs)


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    """Return Numba's options for a kernel; one that makes no array needs no references counted."""
    allocates = "np" in function.__code__.co_names
    return {"nogil": True, "error_model": "numpy", "_nrt": allocates}


def _compilable(function: Callable[P, R]) -> Callable[P, R]:
    """Copy a function, with what can be compiled in place of what it calls."""

    def link(called: Any) -> Any:
        return called.part() if isinstance(called, Kernel) else _primitives().get(called, called)

    return _linked(function, link)


class _ForkGuard:
    """Has `os.fork` wait for what is compiled: a child has the locks, and not the threads."""

    def __init__(self) -> None:
        self.compiler: Any = None
        os.register_at_fork(
            before=self.acquire, after_in_parent=self.release, after_in_child=self.release
        )

    def acquire(self) -> None:
        """Acquire our lock, then Numba's: the order in which compiling acquires them."""
        for lock in (_lock, self.compiler):
            if lock is not None:
                lock.acquire()

    def release(self) -> None:
        """Release both."""
        for lock in (self.compiler, _lock):
            if lock is not None:
                lock.release()


_fork_guard = _ForkGuard()


# The primitives that kernels use. Each is a Python function; compiled, it is the machine
# instruction that `_primitives` names.


def copy(destination: int, source: int, nbytes: int) -> None:
    """Copy `nbytes` bytes between two addresses that do not overlap."""
    ctypes.memmove(int(destination), int(source), int(nbytes))


def copy_u8(destination: int, source: int) -> None:
    """Copy a byte."""
    copy(destination, source, 1)


def copy_u16(destination: int, source: int) -> None:
    """Copy two bytes, at any alignment."""
    copy(destination, source, 2)


def copy_u32(destination: int, source: int) -> None:
    """Copy four bytes, at any alignment."""
    copy(destination, source, 4)


def copy_u64(destination: int, source: int) -> None:
    """Copy eight bytes, at any alignment."""
    copy(destination, source, 8)


def load_u8(address: int) -> int:
    """Read an unsigned byte."""
    return ctypes.c_uint8.from_address(int(address)).value


def load_u32(address: int) -> int:
    """Read a little-endian uint32 at any alignment."""
    return int.from_bytes(ctypes.string_at(int(address), 4), "little")


def prefetch_cache_line(address: int) -> None:
    """Begin to load a byte's cache line, and its page's address, without waiting for them."""


def load_acquire(place: NDArray[np.int64], row: int) -> int:
    """Read ``place[row, 0]``; what other threads wrote before they wrote it is seen after it."""
    return int(place[row, 0])


def load_u8_acquire(address: int) -> int:
    """Read a byte; what others wrote before they wrote it is seen after it."""
    return load_u8(address)


def compare(left: int, right: int, nbytes: int) -> int:
    """Compare two runs of bytes: 0 where they are equal."""
    return int(
        ctypes.string_at(int(left), int(nbytes)) != ctypes.string_at(int(right), int(nbytes))
    )


def will_need(address: int, nbytes: int) -> int:
    """Ask the kernel to read mapped pages in (``madvise`` with ``MADV_WILLNEED``)."""
    return int(_libc.madvise(int(address), int(nbytes), 3))


def u64(number: SupportsInt) -> int:
    """Reduce a number modulo 2**64; where compiled, only unsigned arithmetic may wrap around."""
    return int(number) & 0xFFFFFFFFFFFFFFFF


def popcount(word: int) -> int:
    """Count the bits that are set in a uint64."""
    return word.bit_count()


def multiply_high(left: int, right: int) -> int:
    """Return the upper 64 bits of the product of two uint64, which must be below 2**63."""
    return left * right >> 64


@kernel
def draw(counter: int, bound: int) -> int:
    """Hash a counter, uniformly, to a number below `bound`: a generator with random access.

    The two rounds are the finaliser of SplitMix64, but for its last shift, which does not reach
    the upper bits. Orders of samples depend on it: it may never change.
    """
    x = u64(counter)
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return multiply_high(x, bound)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


# What Numba makes of them. It is called in one thread at a time, under the lock.


@functools.cache
def _primitives() -> dict[Callable[..., Any], Any]:
    """Load Numba, with all that extends it, and return an intrinsic for each primitive."""
    from numba.core import entrypoints
    from numba.core.compiler_lock import global_compiler_lock

    # Extensions add to registries that compiling walks through.
    with global_compiler_lock:
        entrypoints.init_all()
    _fork_guard.compiler = global_compiler_lock
    return {**_memory_primitives(), **_libc_primitives(), **_arithmetic_primitives()}


def _intrinsic(signature: Any, emit: Callable[..., Any]) -> Any:
    """Return an intrinsic of one signature, whose `emit` takes a context, a builder and values."""
    from numba.extending import intrinsic

    def lower(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        value = emit(context, builder, *args)
        return context.get_dummy_value() if value is None else value

    # Numba takes the number of arguments from the function's signature.
    typings: list[Callable[..., Any]] = [
        lambda typingctx, a: (signature, lower),
        lambda typingctx, a, b: (signature, lower),
        lambda typingctx, a, b, c: (signature, lower),
    ]
    return intrinsic(typings[len(signature.args) - 1])


def _pointer(builder: Any, address: Any, bits: int = 8) -> Any:
    from llvmlite import ir

    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def _memory_primitives() -> dict[Callable[..., Any], Any]:
    from llvmlite import ir
    from numba.core import cgutils
    from numba.core import types as nb
    from numba.extending import intrinsic

    def emit_copy(context: Any, builder: Any, to: Any, source: Any, nbytes: Any) -> None:
        to, source = _pointer(builder, to), _pointer(builder, source)
        cgutils.raw_memcpy(builder, to, source, nbytes, itemsize=1, align=1)

    def emit_move(bits: int) -> Callable[..., Any]:
        # Not a memcpy of constant length: LLVM merges several of them into one of any length.
        def emit(context: Any, builder: Any, to: Any, source: Any) -> None:
            value = builder.load(_pointer(builder, source, bits), align=1)
            builder.store(value, _pointer(builder, to, bits), align=1)

        return emit

    def emit_load(bits: int) -> Callable[..., Any]:
        def emit(context: Any, builder: Any, address: Any) -> Any:
            value = builder.load(_pointer(builder, address, bits), align=1)
            return builder.zext(value, ir.IntType(64))

        return emit

    def emit_acquire(context: Any, builder: Any, address: Any) -> Any:
        value = builder.load_atomic(_pointer(builder, address), "acquire", align=1)
        return builder.zext(value, ir.IntType(64))

    def emit_prefetch(context: Any, builder: Any, address: Any) -> None:
        at, word = _pointer(builder, address), ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [at.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [at.type], signature)
        for_reading, keep_close, data = (ir.Constant(word, code) for code in (0, 3, 1))
        builder.call(function, [at, for_reading, keep_close, data])

    @intrinsic  # type: ignore[untyped-decorator]
    def acquire_cell(typingctx: Any, place: Any, row: Any) -> Any:
        def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            array = context.make_array(place)(context, builder, args[0])
            stride = cgutils.unpack_tuple(builder, array.strides)[0]
            start = builder.ptrtoint(array.data, ir.IntType(64))
            at = _pointer(builder, builder.add(start, builder.mul(args[1], stride)), 64)
            return builder.load_atomic(at, "acquire", align=8)

        return nb.int64(place, nb.int64), lower

    load, move = nb.int64(nb.int64), nb.void(nb.int64, nb.int64)
    return {
        copy: _intrinsic(nb.void(nb.int64, nb.int64, nb.int64), emit_copy),
        copy_u8: _intrinsic(move, emit_move(8)),
        copy_u16: _intrinsic(move, emit_move(16)),
        copy_u32: _intrinsic(move, emit_move(32)),
        copy_u64: _intrinsic(move, emit_move(64)),
        load_u8: _intrinsic(load, emit_load(8)),
        load_u32: _intrinsic(load, emit_load(32)),
        load_u8_acquire: _intrinsic(load, emit_acquire),
        load_acquire: acquire_cell,
        prefetch_cache_line: _intrinsic(nb.void(nb.int64), emit_prefetch),
    }


def _libc_primitives() -> dict[Callable[..., Any], Any]:
    from llvmlite import ir
    from numba.core import cgutils
    from numba.core import types as nb

    def emit_call(name: str, *arguments: int) -> Callable[..., Any]:
        """Call a function of words, with constants as its last arguments."""

        def emit(context: Any, builder: Any, *words: Any) -> Any:
            number, word = ir.IntType(32), ir.IntType(64)
            constants = [ir.Constant(number, value) for value in arguments]
            kinds = [word] * len(words) + [number] * len(constants)
            signature = ir.FunctionType(number, kinds)
            function = cgutils.get_or_insert_function(builder.module, signature, name)
            return builder.sext(builder.call(function, [*words, *constants]), word)

        return emit

    return {
        compare: _intrinsic(nb.int64(nb.int64, nb.int64, nb.int64), emit_call("memcmp")),
        will_need: _intrinsic(nb.int64(nb.int64, nb.int64), emit_call("madvise", 3)),
    }


def _arithmetic_primitives() -> dict[Callable[..., Any], Any]:
    from llvmlite import ir
    from numba.core import types as nb

    def emit_high_half(context: Any, builder: Any, left: Any, right: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(left, wide), builder.zext(right, wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

    return {
        u64: _intrinsic(nb.uint64(nb.int64), lambda context, builder, number: number),
        popcount: _intrinsic(
            nb.int64(nb.uint64), lambda context, builder, word: builder.ctpop(word)
        ),
        multiply_high: _intrinsic(nb.int64(nb.uint64, nb.uint64), emit_high_half),
    }


# Kernels that kernels call. Numba makes machine code and two wrappers of every function, and
# machine code of it again in each that calls it. Parts get none: that takes half the time. They
# are optimized, as the whole would come out slower by 15% without.


def _part_options(function: Callable[..., Any]) -> dict[str, Any]:
    """Return Numba's options for a kernel that others call."""
    without = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return {**_options(function), **without, "pipeline_class": _part_compiler()}


@functools.cache
def _part_compiler() -> type[Any]:
    """Return Numba's compiler, but for the last step: see above."""
    from numba.core.codegen import JITCodeLibrary
    from numba.core.compiler import CompilerBase, DefaultPassBuilder
    from numba.core.compiler_machinery import register_pass
    from numba.core.typed_passes import NativeLowering

    class Library(JITCodeLibrary):  # type: ignore[misc]
        """Code that is linked into other code."""

        def _finalize_final_module(self) -> None:
            self._finalize_dynamic_globals()
            self._finalized = True

    @register_pass(mutates_CFG=True, analysis_only=False)
    class PartLowering(NativeLowering):  # type: ignore[misc]
        """Lowering to optimized LLVM code, without machine code."""

        _name = "npstream_part_lowering"

        def run_pass(self, state: Any) -> bool:
            """Lower a function, and let others be linked with it."""
            state.library = Library(state.targetctx.codegen(), state.func_id.func_qualname)
            state.flags.no_compile = True
            super().run_pass(state)
            state.library.finalize()
            # Numba knows a function by what Python would call, which must be a built-in.
            key, lowered = [].clear, state["cr"]
            state.targetctx.insert_user_function(key, lowered.fndesc, [state.library])
            state["cr"] = lowered._replace(cfunc=key)
            return True

    class Compiler(CompilerBase):  # type: ignore[misc]
        """The pipeline with that step."""

        def define_pipelines(self) -> list[Any]:
            """Return the only pipeline."""
            pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
            pipeline.passes = [
                (PartLowering if step is NativeLowering else step, text)
                for step, text in pipeline.passes
            ]
            pipeline._finalized = False
            pipeline.finalize()
            return [pipeline]

    return Compiler
