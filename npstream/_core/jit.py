"""The one door to Numba.

Importing Numba costs more than half a second and the first call of any kernel a third more,
so nothing here imports it before a kernel is worth that. A kernel is an ordinary Python
function over arrays and addresses; until then it runs as one.

Tested in tests/shards/test_kernels.py.
"""

from __future__ import annotations

import ctypes
import functools
import threading
import types
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, SupportsInt, TypeVar

import numpy as np
from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")

SMALL_WORK = 1 << 10
"""Rows up to which a call runs as plain Python while Numba is not loaded (about 10 us a row)."""

PATIENCE = 1 << 15
"""Rows handled as plain Python, over the process's life, after which Numba pays for itself."""

_lock = threading.RLock()
_loaded = False
_rows_in_python = 0


class Kernel(Generic[P, R]):
    """A function that Numba compiles at its first call, without the GIL.

    Kernels may call kernels and the primitives below.
    """

    def __init__(self, function: Callable[P, R]) -> None:
        self._function = function
        self._compiled: Callable[P, R] | None = None
        functools.update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.compiled()(*args, **kwargs)

    def sized(self, rows: int) -> Callable[P, R]:
        """Return what runs `rows` rows soonest: the compiled kernel, or its plain function."""
        global _rows_in_python
        if self._compiled is not None:
            return self._compiled
        if not _loaded and rows <= SMALL_WORK:
            # A lost update between threads only shifts the moment of the change.
            _rows_in_python += rows
            if _rows_in_python <= PATIENCE:
                return self.py_func
        return self.compiled()

    @property
    def is_loaded(self) -> bool:
        """Whether the compiled kernel runs without Numba being imported for it."""
        return self._compiled is not None or _loaded

    @functools.cached_property
    def py_func(self) -> Callable[P, R]:
        """The function as plain Python, and so the kernels that it calls."""
        return _linked(self._function, lambda called: called.py_func)

    def compiled(self) -> Callable[P, R]:
        """Return Numba's dispatcher for this kernel."""
        global _loaded
        if self._compiled is None:
            with _lock:
                _load_primitives()
                linked = _linked(self._function, lambda called: called.compiled())
                self._compiled = _dispatcher(linked)
                _loaded = True
        return self._compiled


def kernel(function: Callable[P, R]) -> Kernel[P, R]:
    """Decorate a loop over arrays so that it runs compiled; see `Kernel`."""
    return Kernel(function)


def always_compile() -> None:
    """Have kernels run compiled from now on, however small the work."""
    global _loaded
    _loaded = True


def _linked(
    function: Callable[P, R], link: Callable[[Kernel[..., Any]], Callable[..., Any]]
) -> Callable[P, R]:
    """Copy a function, with something else in place of each kernel that it calls."""
    namespace = dict(function.__globals__)
    for name in function.__code__.co_names:
        if isinstance(called := namespace.get(name), Kernel):
            namespace[name] = link(called)
    linked = types.FunctionType(function.__code__, namespace, function.__name__)
    return functools.update_wrapper(linked, function)


def _dispatcher(py_func: Callable[P, R]) -> Callable[P, R]:
    import numba

    try:
        return numba.njit(nogil=True, cache=True)(py_func)  # type: ignore[no-any-return]
    except RuntimeError:
        # No place to keep compiled code: neither beside the source nor in the home directory.
        return numba.njit(nogil=True)(py_func)  # type: ignore[no-any-return]


# The primitives that kernels use. Each is a Python function; `_load_primitives` teaches Numba to
# emit the machine instruction instead.


def copy(destination: int, source: int, nbytes: int) -> None:
    """Copy `nbytes` bytes between two addresses that do not overlap."""
    ctypes.memmove(int(destination), int(source), int(nbytes))


def load_u8(address: int) -> int:
    """Read an unsigned byte."""
    return ctypes.c_uint8.from_address(int(address)).value


def load_u32(address: int) -> int:
    """Read a little-endian uint32 at any alignment."""
    return int.from_bytes(ctypes.string_at(int(address), 4), "little")


def load_ahead(address: int) -> None:
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


@functools.cache
def _load_primitives() -> None:
    _load_memory_primitives()
    _load_prefetch_primitive()
    _load_libc_primitives()
    _load_arithmetic_primitives()


def _pointer(builder: Any, address: Any, bits: int = 8) -> Any:
    from llvmlite import ir

    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def _load_memory_primitives() -> None:
    from llvmlite import ir
    from numba.core import cgutils
    from numba.core import types as nb
    from numba.extending import intrinsic, overload

    @intrinsic  # type: ignore[untyped-decorator]
    def copy_bytes(typingctx: Any, destination: Any, source: Any, nbytes: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            to, source, count = _pointer(builder, args[0]), _pointer(builder, args[1]), args[2]
            cgutils.raw_memcpy(builder, to, source, count, itemsize=1, align=1)
            return context.get_dummy_value()

        return nb.void(nb.int64, nb.int64, nb.int64), emit

    def loader(bits: int) -> Any:
        @intrinsic  # type: ignore[untyped-decorator]
        def load(typingctx: Any, address: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                value = builder.load(_pointer(builder, args[0], bits), align=1)
                return builder.zext(value, ir.IntType(64))

            return nb.int64(nb.int64), emit

        return load

    def acquirer(bits: int) -> Any:
        @intrinsic  # type: ignore[untyped-decorator]
        def load(typingctx: Any, address: Any) -> Any:
            def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
                at = _pointer(builder, args[0], bits)
                value = builder.load_atomic(at, "acquire", align=bits // 8)
                return builder.zext(value, ir.IntType(64)) if bits < 64 else value

            return nb.int64(nb.int64), emit

        return load

    load_8, load_32 = loader(8), loader(32)
    acquire_8, acquire_64 = acquirer(8), acquirer(64)
    overload(copy)(
        lambda destination, source, nbytes: (
            lambda destination, source, nbytes: copy_bytes(destination, source, nbytes)
        )
    )
    overload(load_u8)(lambda address: lambda address: load_8(address))
    overload(load_u32)(lambda address: lambda address: load_32(address))
    overload(load_u8_acquire)(lambda address: lambda address: acquire_8(address))
    overload(load_acquire)(
        lambda place, row: lambda place, row: acquire_64(place.ctypes.data + row * place.strides[0])
    )


def _load_prefetch_primitive() -> None:
    from llvmlite import ir
    from numba.core import types as nb
    from numba.extending import intrinsic, overload

    @intrinsic  # type: ignore[untyped-decorator]
    def load_line(typingctx: Any, address: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            at, word = _pointer(builder, args[0]), ir.IntType(32)
            signature_of = ir.FunctionType(ir.VoidType(), [at.type, word, word, word])
            function = builder.module.declare_intrinsic("llvm.prefetch", [at.type], signature_of)
            for_reading, keep_close, data = (ir.Constant(word, code) for code in (0, 3, 1))
            builder.call(function, [at, for_reading, keep_close, data])
            return context.get_dummy_value()

        return nb.void(nb.int64), emit

    overload(load_ahead)(lambda address: lambda address: load_line(address))


def _load_libc_primitives() -> None:
    from numba.core import types as nb
    from numba.extending import overload

    external: Any = nb.ExternalFunction
    memcmp = external("memcmp", nb.int32(nb.int64, nb.int64, nb.uint64))
    madvise = external("madvise", nb.int32(nb.int64, nb.uint64, nb.int32))

    overload(compare)(
        lambda left, right, nbytes: (
            lambda left, right, nbytes: nb.int64(memcmp(left, right, nbytes))
        )
    )
    overload(will_need)(
        lambda address, nbytes: lambda address, nbytes: nb.int64(madvise(address, nbytes, 3))
    )


def _load_arithmetic_primitives() -> None:
    from llvmlite import ir
    from numba.core import types as nb
    from numba.extending import intrinsic, overload

    @intrinsic  # type: ignore[untyped-decorator]
    def high_half(typingctx: Any, left: Any, right: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            wide = ir.IntType(128)
            product = builder.mul(*[builder.zext(factor, wide) for factor in args])
            return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), ir.IntType(64))

        return nb.int64(nb.uint64, nb.uint64), emit

    @intrinsic  # type: ignore[untyped-decorator]
    def bits_set(typingctx: Any, word: Any) -> Any:
        def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return builder.ctpop(args[0])

        return nb.int64(nb.uint64), emit

    overload(u64)(lambda number: lambda number: nb.uint64(number))
    overload(popcount)(lambda word: lambda word: bits_set(word))
    overload(multiply_high)(
        lambda left, right: lambda left, right: high_half(left, nb.uint64(right))
    )
    overload(draw, strict=False)(lambda counter, bound: draw)
