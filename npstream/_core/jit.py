"""Lazy compilation of kernels; the only module that imports Numba.

Importing Numba takes half a second, and compiling a kernel takes up to four seconds. So this module
imports and compiles only when the work is large enough. Until then, a kernel runs as an ordinary
Python function over arrays and addresses.

A separate thread imports Numba and compiles kernels, under one lock. So an interrupt ends only the
wait, other threads never see a half-finished import, and `os.fork` waits for the lock.

Tested in tests/_core/test_jit.py and tests/shards/test_kernels.py.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, SupportsInt, TypeVar

from npstream._core.log import log, warn

P = ParamSpec("P")
R = TypeVar("R")

SMALL_CALL_ROWS = 1 << 13
"""Up to this number of rows, a call runs as plain Python while Numba is not imported.

Plain Python takes about 10 us a row. So such a call takes at most a sixth of the import's time.
"""

IMPORT_THRESHOLD = 1 << 15
"""After this number of rows in plain Python, the process imports Numba."""

COMPILE_THRESHOLD = 1 << 17
"""After this number of rows in plain Python, kernels without compiled code on disk are compiled.

Compiling one takes up to four seconds.
"""

NOTICE_SECONDS = 2.0
"""Seconds of compilation after which the process logs a warning."""

_lock = threading.RLock()
_is_numba_loaded = False
_always_compiles = False
_rows_in_python = 0
_seconds_compiling = 0.0
_has_warned = False


class Kernel(Generic[P, R]):
    """A function that Numba compiles, to run without the GIL, once the work is large enough.

    Kernels may call other kernels and the primitives below. They must call them as globals, such as
    ``copy(...)``, and not as attributes of a module, such as ``jit.copy(...)``.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self._function = function
        self._dispatcher: Any = None
        self._compiled: Callable[P, R] | None = None
        self._callee: Any = None
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.compiled()(*args, **kwargs)

    def for_size(self, rows: int) -> Callable[P, R]:
        """Return the faster function for `rows` rows: the compiled kernel or plain Python."""
        global _rows_in_python
        if self._compiled is not None:
            return self._compiled
        # A lost update between threads only delays the compilation a little.
        total = _rows_in_python + rows
        is_small = rows <= SMALL_CALL_ROWS and total <= IMPORT_THRESHOLD
        if not _always_compiles and (
            (is_small and not _is_numba_loaded)  # not worth the import of Numba
            or (total <= COMPILE_THRESHOLD and not self._is_on_disk())  # not worth a compilation
        ):
            _rows_in_python = total
            return self.py_func
        return self.compiled()

    @property
    def is_loaded(self) -> bool:
        """Whether the compiled kernel can run now, without an import or a compilation."""
        return self._compiled is not None or (_is_numba_loaded and self._is_on_disk())

    @functools.cached_property
    def py_func(self) -> Callable[P, R]:
        """The function in plain Python; the kernels that it calls are in plain Python as well."""
        return _relink(self._function, lambda callee: getattr(callee, "py_func", callee))

    def compiled(self) -> Callable[P, R]:
        """Return Numba's dispatcher for this kernel."""
        if self._compiled is None:
            self._load()
            self._compiled = self._dispatcher
        return self._compiled

    def callee(self) -> Any:
        """Return this kernel in the form that other kernels call; see `_callee_options`."""
        if self._callee is None:
            import numba

            function = _compilable(self._function)
            self._callee = numba.njit(**_callee_options(self._function))(function)
        return self._callee

    def _load(self) -> None:
        """Create the dispatcher, which compiles at its first call."""

        def load() -> None:
            if self._dispatcher is None:
                self._dispatcher = _dispatcher(self._function)

        if self._dispatcher is None:
            _run_in_thread(load)

    def _is_on_disk(self) -> bool:
        """Return True if compiled code of this kernel is on disk, even if it is out of date."""
        import glob

        self._load()
        prefix = _cache_prefix(self._dispatcher)
        return prefix is not None and bool(glob.glob(f"{glob.escape(prefix)}*.nbi"))


def kernel(function: Callable[P, R]) -> Kernel[P, R]:
    """Decorate a loop over arrays so that it runs compiled; see `Kernel`."""
    return Kernel(function)


def always_compile() -> None:
    """Make all kernels run compiled from now on, even for little work."""
    global _always_compiles
    _always_compiles = True


def _relink(function: Callable[P, R], link: Callable[[Any], Any]) -> Callable[P, R]:
    """Return a copy of a function that calls ``link(f)`` in place of each function `f`."""
    namespace = dict(function.__globals__)
    for name in function.__code__.co_names:
        callee = namespace.get(name)
        if isinstance(callee, Kernel | types.FunctionType):
            namespace[name] = link(callee)
    linked = types.FunctionType(function.__code__, namespace, function.__name__)
    return functools.update_wrapper(linked, function)


# Loading and compiling.


def _run_in_thread(job: Callable[[], R], dispatcher: Any = None) -> R:
    """Run `job` in a new thread under the lock; warn if it compiles a dispatcher and takes long."""
    results: list[R] = []
    errors: list[BaseException] = []

    def run() -> None:
        global _seconds_compiling
        with _lock:
            start = time.perf_counter()
            try:
                results.append(job())
            except BaseException as error:
                errors.append(error)
            if dispatcher is not None:
                _seconds_compiling += time.perf_counter() - start

    thread = threading.Thread(target=run, name="npstream-compile")
    try:
        thread.start()
    except RuntimeError:  # Python starts no thread while the interpreter shuts down
        run()
    else:
        if dispatcher is not None:
            thread.join(max(NOTICE_SECONDS - _seconds_compiling, 0.0))
            if thread.is_alive():
                _warn_compiling(dispatcher)
        thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _warn_compiling(dispatcher: Any) -> None:
    """Warn that kernels are being compiled, at most once a process.

    If Numba caches the kernel, a file next to its code keeps later processes from warning again.
    """
    global _has_warned
    if _has_warned:
        return
    _has_warned = True
    prefix = _cache_prefix(dispatcher)
    if prefix is None:
        when = "in every process, because no directory can be written: set NUMBA_CACHE_DIR to one"
    else:
        when = f"once on this machine, because the code is kept in {os.path.dirname(prefix)}"
        try:
            os.close(os.open(f"{prefix}.noticed", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return
        except OSError as error:  # later processes warn again
            log("cannot keep compiled code in %s: %s", os.path.dirname(prefix), error)
    warn("npstream compiles its kernels, which takes seconds: %s", when)


def _cache_prefix(dispatcher: Any) -> str | None:
    """Return the start of the paths of a kernel's compiled code; None if Numba caches none."""
    if (directory := dispatcher.stats.cache_path) is None:
        return None
    code = dispatcher.py_func.__code__
    stem = os.path.splitext(os.path.basename(code.co_filename))[0]
    python = f"py{sys.version_info.major}{sys.version_info.minor}"
    name = f"{stem}.{dispatcher.py_func.__qualname__}".replace("<", "").replace(">", "")
    return os.path.join(directory, f"{name}-{code.co_firstlineno}.{python}")


def _dispatcher(function: Callable[..., Any]) -> Any:
    """Return Numba's dispatcher of a kernel; it compiles in a separate thread."""
    global _is_numba_loaded
    _primitives()
    import numba

    options = {**_options(function), "no_cfunc_wrapper": True}
    linked = _compilable(function)
    try:
        dispatcher: Any = numba.njit(cache=True, **options)(linked)
    except RuntimeError:
        # Numba can write neither to the source's directory nor to the home directory.
        dispatcher = numba.njit(**options)(linked)
    compile_now = dispatcher._compile_for_args

    def compile_in_thread(*args: Any, **kwargs: Any) -> Any:
        return _run_in_thread(lambda: _compile(dispatcher, compile_now, args, kwargs), dispatcher)

    dispatcher._compile_for_args = compile_in_thread
    _is_numba_loaded = True
    return dispatcher


def _compile(dispatcher: Any, compile_now: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Compile a kernel for arguments; compile without Numba's cache if the cache fails."""
    from numba.core.caching import NullCache

    try:
        return compile_now(*args, **kwargs)
    except Exception as error:
        if isinstance(dispatcher._cache, NullCache):
            raise
        # A full disk or a damaged file can raise any exception. The second attempt raises again if
        # the error is in the kernel.
        log("compiling %s without its file: %r", dispatcher.py_func.__name__, error)
        dispatcher._cache = NullCache()
        return compile_now(*args, **kwargs)


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    """Return Numba's options for a kernel, with reference counts only if it allocates arrays."""
    allocates = "np" in function.__code__.co_names
    return {"nogil": True, "error_model": "numpy", "_nrt": allocates}


def _compilable(function: Callable[P, R]) -> Callable[P, R]:
    """Return a copy of a function that calls only functions that Numba can compile."""

    def link(callee: Any) -> Any:
        return callee.callee() if isinstance(callee, Kernel) else _primitives().get(callee, callee)

    return _relink(function, link)


class _ForkGuard:
    """Hooks that make `os.fork` wait for compilation.

    Otherwise, a child could inherit a lock whose thread it does not have.
    """

    def __init__(self) -> None:
        self.compiler_lock: Any = None
        os.register_at_fork(
            before=self.acquire, after_in_parent=self.release, after_in_child=self.release
        )

    def acquire(self) -> None:
        """Acquire our lock, then Numba's, in the order in which compilation acquires them."""
        for lock in (_lock, self.compiler_lock):
            if lock is not None:
                lock.acquire()

    def release(self) -> None:
        """Release both locks."""
        for lock in (self.compiler_lock, _lock):
            if lock is not None:
                lock.release()


_fork_guard = _ForkGuard()


# The primitives that kernels use. Each is a Python function. In compiled kernels, the intrinsic
# from `_primitives` replaces it.


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


def load_i64(address: int) -> int:
    """Read an int64 at any alignment."""
    return ctypes.c_int64.from_address(int(address)).value


def is_compiled() -> bool:
    """Return True in compiled code. Plain Python gets False, and skips the prefetches."""
    return False


def prefetch_cache_line(address: int) -> None:
    """Prefetch a byte's cache line, and its page table entry, without waiting."""


def prefetch_far(address: int) -> None:
    """Prefetch a byte's cache line into the L2 cache, which allows more misses at once than L1."""


def load_i64_acquire(address: int) -> int:
    """Read an aligned int64 with acquire order: later reads see the writer's earlier writes."""
    return load_i64(address)


def load_u8_acquire(address: int) -> int:
    """Read a byte with acquire order: later reads see the writer's earlier writes."""
    return load_u8(address)


def compare(left: int, right: int, nbytes: int) -> int:
    """Compare byte ranges; return 0 if equal, else a number with the sign of memcmp's result."""
    left_bytes = ctypes.string_at(int(left), int(nbytes))
    right_bytes = ctypes.string_at(int(right), int(nbytes))
    return (left_bytes > right_bytes) - (left_bytes < right_bytes)


MASK_BYTES = 32
"""Positions that `match_mask` compares at once: the bytes of a vector register of AVX2."""


def match_mask(address: int, distance: int, pair: int) -> int:
    """Compare `MASK_BYTES` positions with two bytes, ``pair & 255`` and ``pair >> 8``.

    Bit k of the result is set if the first byte is at ``address + k``, and the second one
    `distance` bytes after it. Both runs of `MASK_BYTES` bytes are read.
    """
    first, second = (ctypes.string_at(int(a), MASK_BYTES) for a in (address, address + distance))
    return sum(
        1 << k for k in range(MASK_BYTES) if first[k] == pair & 255 and second[k] == pair >> 8
    )


def continuation_mask(address: int) -> int:
    """Return `MASK_BYTES` bits, set where a byte continues a character of UTF-8: 0b10xxxxxx."""
    values = ctypes.string_at(int(address), MASK_BYTES)
    return sum(1 << k for k, value in enumerate(values) if value >> 6 == 2)


def lowest_bit(word: int) -> int:
    """Return the position of the lowest bit that is set in a positive number."""
    return (int(word) & -int(word)).bit_length() - 1


def will_need(address: int, nbytes: int) -> int:
    """Ask the operating system to read mapped pages (``madvise`` with ``MADV_WILLNEED``)."""
    return int(_libc.madvise(int(address), int(nbytes), 3))


def u64(number: SupportsInt) -> int:
    """Reduce a number modulo 2**64; in compiled code, only unsigned arithmetic may wrap around."""
    return int(number) & 0xFFFFFFFFFFFFFFFF


def u32(number: SupportsInt) -> int:
    """Reduce a number modulo 2**32; a loop over such numbers fills vectors with twice as many."""
    return int(number) & 0xFFFFFFFF


def popcount(word: int) -> int:
    """Count the bits that are set in a uint64."""
    return word.bit_count()


def multiply_high(left: int, right: int) -> int:
    """Return the upper 64 bits of the product of two uint64; the result must be below 2**63."""
    return left * right >> 64


def multiply_high_short(left: int, right: int) -> int:
    """Return `multiply_high` for `right` below 2**32; loops over it can use vector instructions."""
    return left * right >> 64


_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


# The intrinsics that replace the primitives. One thread at a time creates them, under the lock.


@functools.cache
def _primitives() -> dict[Callable[..., Any], Any]:
    """Load Numba and its extensions, and return an intrinsic for each primitive."""
    from numba.core import entrypoints
    from numba.core.compiler_lock import global_compiler_lock

    # Extensions add to registries that a compilation in another thread iterates over.
    with global_compiler_lock:
        entrypoints.init_all()
    _fork_guard.compiler_lock = global_compiler_lock
    memory = {**_memory_primitives(), **_vector_primitives()}
    return {**memory, **_libc_primitives(), **_arithmetic_primitives()}


def _intrinsic(signature: Any, emit: Callable[..., Any]) -> Any:
    """Return an intrinsic with one signature; `emit` takes a context, a builder and values."""
    from numba.extending import intrinsic

    def lower(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        value = emit(context, builder, *args)
        return context.get_dummy_value() if value is None else value

    # Numba takes the number of arguments from the function's signature.
    typings: list[Callable[..., Any]] = [
        lambda typingctx: (signature, lower),
        lambda typingctx, a: (signature, lower),
        lambda typingctx, a, b: (signature, lower),
        lambda typingctx, a, b, c: (signature, lower),
    ]
    return intrinsic(typings[len(signature.args)])


def _pointer(builder: Any, address: Any, bits: int = 8) -> Any:
    from llvmlite import ir

    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def _memory_primitives() -> dict[Callable[..., Any], Any]:
    from llvmlite import ir
    from numba.core import cgutils
    from numba.core import types as nb

    def emit_copy(context: Any, builder: Any, target: Any, source: Any, nbytes: Any) -> None:
        target, source = _pointer(builder, target), _pointer(builder, source)
        cgutils.raw_memcpy(builder, target, source, nbytes, itemsize=1, align=1)

    def emit_move(bits: int) -> Callable[..., Any]:
        # This emits no memcpy: LLVM merges calls of constant lengths into one of a variable length.
        def emit(context: Any, builder: Any, target: Any, source: Any) -> None:
            value = builder.load(_pointer(builder, source, bits), align=1)
            builder.store(value, _pointer(builder, target, bits), align=1)

        return emit

    def emit_load(bits: int) -> Callable[..., Any]:
        def emit(context: Any, builder: Any, address: Any) -> Any:
            value = builder.load(_pointer(builder, address, bits), align=1)
            return builder.zext(value, ir.IntType(64))

        return emit

    def emit_acquire(bits: int) -> Callable[..., Any]:
        def emit(context: Any, builder: Any, address: Any) -> Any:
            pointer = _pointer(builder, address, bits)
            value = builder.load_atomic(pointer, "acquire", align=bits // 8)
            return builder.zext(value, ir.IntType(64))

        return emit

    def emit_prefetch(locality: int, context: Any, builder: Any, address: Any) -> None:
        pointer, word = _pointer(builder, address), ir.IntType(32)
        signature = ir.FunctionType(ir.VoidType(), [pointer.type, word, word, word])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], signature)
        # The locality is 3 for the L1 cache, and 2 for the L2 cache.
        for_reading, close, data = (ir.Constant(word, code) for code in (0, locality, 1))
        builder.call(function, [pointer, for_reading, close, data])

    load, move = nb.int64(nb.int64), nb.void(nb.int64, nb.int64)
    loads = {load_u8: 8, load_u32: 32, load_i64: 64}
    return {
        copy: _intrinsic(nb.void(nb.int64, nb.int64, nb.int64), emit_copy),
        copy_u8: _intrinsic(move, emit_move(8)),
        copy_u16: _intrinsic(move, emit_move(16)),
        copy_u32: _intrinsic(move, emit_move(32)),
        copy_u64: _intrinsic(move, emit_move(64)),
        **{f: _intrinsic(load, emit_load(bits)) for f, bits in loads.items()},
        load_u8_acquire: _intrinsic(load, emit_acquire(8)),
        load_i64_acquire: _intrinsic(load, emit_acquire(64)),
        prefetch_cache_line: _intrinsic(nb.void(nb.int64), functools.partial(emit_prefetch, 3)),
        prefetch_far: _intrinsic(nb.void(nb.int64), functools.partial(emit_prefetch, 2)),
    }


def _vector_primitives() -> dict[Callable[..., Any], Any]:
    from llvmlite import ir
    from numba.core import types as nb

    def emit_match(context: Any, builder: Any, address: Any, distance: Any, pair: Any) -> Any:
        vector, byte = ir.VectorType(ir.IntType(8), MASK_BYTES), ir.IntType(8)
        no_value = ir.Constant(vector, ir.Undefined)
        zeros = ir.Constant(ir.VectorType(ir.IntType(32), MASK_BYTES), [0] * MASK_BYTES)

        def equal(position: Any, expected: Any) -> Any:
            pointer = builder.inttoptr(position, vector.as_pointer())
            one = builder.insert_element(no_value, expected, ir.Constant(ir.IntType(32), 0))
            same = builder.shuffle_vector(one, no_value, zeros)
            return builder.icmp_unsigned("==", builder.load(pointer, align=1), same)

        second = builder.lshr(pair, ir.Constant(pair.type, 8))
        left = equal(address, builder.trunc(pair, byte))
        right = equal(builder.add(address, distance), builder.trunc(second, byte))
        mask = builder.bitcast(builder.and_(left, right), ir.IntType(MASK_BYTES))
        return builder.zext(mask, ir.IntType(64))

    def emit_continuations(context: Any, builder: Any, address: Any) -> Any:
        vector = ir.VectorType(ir.IntType(8), MASK_BYTES)
        bytes_ = builder.load(builder.inttoptr(address, vector.as_pointer()), align=1)
        bounds = ir.Constant(vector, [-64] * MASK_BYTES)  # as signed bytes, 0b10xxxxxx are less
        mask = builder.icmp_signed("<", bytes_, bounds)
        return builder.zext(builder.bitcast(mask, ir.IntType(MASK_BYTES)), ir.IntType(64))

    return {
        continuation_mask: _intrinsic(nb.int64(nb.int64), emit_continuations),
        match_mask: _intrinsic(nb.int64(nb.int64, nb.int64, nb.int64), emit_match),
    }


def _libc_primitives() -> dict[Callable[..., Any], Any]:
    from llvmlite import ir
    from numba.core import cgutils
    from numba.core import types as nb

    def emit_call(name: str, *arguments: int) -> Callable[..., Any]:
        """Emit a call of a libc function on 64-bit words, with constants as last arguments."""

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

    def emit_short_high_half(context: Any, builder: Any, left: Any, right: Any) -> Any:
        # left * right >> 64, from the products of the 32-bit halves of `left` with `right`.
        mask, half = ir.Constant(left.type, 0xFFFFFFFF), ir.Constant(left.type, 32)
        right = builder.and_(right, mask)
        upper = builder.mul(builder.lshr(left, half), right)
        lower = builder.mul(builder.and_(left, mask), right)
        return builder.lshr(builder.add(upper, builder.lshr(lower, half)), half)

    def emit_lowest_bit(context: Any, builder: Any, word: Any) -> Any:
        return builder.cttz(word, ir.Constant(ir.IntType(1), 1))

    return {
        is_compiled: _intrinsic(nb.boolean(), lambda _, builder: ir.Constant(ir.IntType(1), 1)),
        lowest_bit: _intrinsic(nb.int64(nb.int64), emit_lowest_bit),
        u32: _intrinsic(
            nb.uint32(nb.int64), lambda _, builder, n: builder.trunc(n, ir.IntType(32))
        ),
        u64: _intrinsic(nb.uint64(nb.int64), lambda context, builder, number: number),
        popcount: _intrinsic(nb.int64(nb.uint64), lambda _, builder, word: builder.ctpop(word)),
        multiply_high: _intrinsic(nb.int64(nb.uint64, nb.uint64), emit_high_half),
        multiply_high_short: _intrinsic(nb.int64(nb.uint64, nb.uint64), emit_short_high_half),
    }


# Kernels that other kernels call. Numba compiles every function to machine code with two wrappers,
# and compiles it again into each caller. For a callee we skip its own machine code and wrappers,
# which halves the compilation time. We optimize its LLVM code: otherwise callers run 15% slower.


def _callee_options(function: Callable[..., Any]) -> dict[str, Any]:
    """Return Numba's options for a kernel that others call."""
    no_wrappers = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return {**_options(function), **no_wrappers, "pipeline_class": _callee_compiler()}


@functools.cache
def _callee_compiler() -> type[Any]:
    """Return Numba's compiler without its last step; the comment above says why."""
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
    class CalleeLowering(NativeLowering):  # type: ignore[misc]
        """Lowering to optimized LLVM code, without machine code."""

        _name = "npstream_callee_lowering"

        def run_pass(self, state: Any) -> bool:
            """Lower a function, and register it so that callers can be linked with it."""
            state.library = Library(state.targetctx.codegen(), state.func_id.func_qualname)
            state.flags.no_compile = True
            super().run_pass(state)
            state.library.finalize()
            # Numba identifies a function by a Python callable, which must be a built-in. Each
            # evaluation of [].clear returns a built-in that is equal to no other.
            key, lowered = [].clear, state["cr"]
            state.targetctx.insert_user_function(key, lowered.fndesc, [state.library])
            state["cr"] = lowered._replace(cfunc=key)
            return True

    class Compiler(CompilerBase):  # type: ignore[misc]
        """A compiler whose pipeline lowers with `CalleeLowering`."""

        def define_pipelines(self) -> list[Any]:
            """Return the only pipeline."""
            pipeline = DefaultPassBuilder.define_nopython_pipeline(self.state)
            pipeline.passes = [
                (CalleeLowering if step is NativeLowering else step, text)
                for step, text in pipeline.passes
            ]
            pipeline._finalized = False
            pipeline.finalize()
            return [pipeline]

    return Compiler
