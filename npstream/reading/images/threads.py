"""Provide `DecodeThreads`, which decode the images of some columns concurrently.

Decoders release the GIL. Each thread that is free takes the next image of a column, so an image
that takes long does not delay the others.

Tested in tests/reading/images/test_columns.py.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import numpy as np

from npstream._core.memory import BufferPool, ensure_fits, fits_in_memory
from npstream._core.typing import AnyArray

__all__ = ["DecodeThreads", "ImageStack", "thread_count"]

MAX_DECODE_THREADS = 64

DecodeRow: TypeAlias = "Callable[[int, ImageStack], AnyArray]"
"""Decodes the image of a row; it may use `ImageStack.slot` of the stack for its result."""


def thread_count(processes: int = 1) -> int:
    """Return the number of threads for each of several processes that decode at the same time."""
    get_affinity: Any = getattr(os, "sched_getaffinity", None)
    cores = len(get_affinity(0)) if get_affinity is not None else os.cpu_count() or 1
    return min(MAX_DECODE_THREADS, max(1, cores // max(1, processes)))


class ImageStack:
    """The decoded images of one column of a batch: one array while their shapes agree.

    The first image that is decoded determines the shape and the dtype. All others of that shape are
    decoded into the same array.

    Parameters
    ----------
    count : int
        The number of images.
    decode : callable
        Decodes the image of a row.
    shape : tuple of int
        The shape of an image, for a stack without images.
    is_fixed : bool
        True if every image has this shape. Then a stack that does not fit in memory raises
        MemoryError. If False, the images of such a stack become separate arrays, because they may
        be smaller than the first one.
    buffers : BufferPool, optional
        The memory of the array, which is new by default.
    """

    def __init__(
        self,
        count: int,
        decode: DecodeRow,
        shape: tuple[int, ...],
        is_fixed: bool,
        buffers: BufferPool | None = None,
    ) -> None:
        self.count, self._decode, self._shape, self._is_fixed = count, decode, shape, is_fixed
        self._buffers = buffers or BufferPool()
        self._images: list[AnyArray | None] = [None] * count
        self._errors: dict[int, BaseException] = {}
        self._next = itertools.count()  # `next` of a count is atomic
        self._stop = count
        self._lock = threading.Lock()
        self._array: AnyArray | None = None
        self._shapes_agree = True
        self._stops_at_errors = True

    def copy_undecoded(self) -> ImageStack:
        """Return a new stack for the same images, none of them decoded."""
        stack = ImageStack(self.count, self._decode, self._shape, self._is_fixed, self._buffers)
        stack._shapes_agree = self._shapes_agree
        stack._stops_at_errors = self._stops_at_errors
        return stack

    def separate(self) -> None:
        """Make each image an array of its own."""
        self._shapes_agree = False

    def decode_past_errors(self) -> None:
        """Decode all images, also after one fails, so that `errors` has all errors."""
        self._stops_at_errors = False

    def decode(self) -> None:
        """Decode images until none is left, or one fails. Each thread calls this."""
        for row in self._next:
            if row >= self._stop:
                return
            try:
                self._images[row] = self._decode(row, self)
            except BaseException as error:
                self._errors[row] = error
                # Images before this row are being decoded by other threads, which finish them.
                if self._stops_at_errors:
                    self._stop = min(self._stop, row)

    def cancel(self) -> None:
        """Let the threads stop after the images that they are decoding."""
        self._stop = -1

    def slot(self, row: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> AnyArray | None:
        """Return the array of a row in the stack; None if the image does not fit into it."""
        if not self._shapes_agree:
            return None
        with self._lock:
            if self._array is None:
                if not self._allocate(shape, dtype):
                    return None
            elif self._array.shape[1:] != shape or self._array.dtype != dtype:
                self._shapes_agree = False
                return None
            assert self._array is not None
            target: AnyArray = self._array[row, ...]  # an array even if the shape is ()
            return target

    def _allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> bool:
        elements = self.count * int(np.prod(shape, dtype=object))
        nbytes = elements * dtype.itemsize
        if self._is_fixed:
            ensure_fits(nbytes, f"{self.count:,} decoded images of shape {shape}")
        elif not fits_in_memory(nbytes):
            self._shapes_agree = False
            return False
        self._array = self._buffers.empty(elements, dtype).reshape(self.count, *shape)
        return True

    @property
    def errors(self) -> dict[int, BaseException]:
        """The error of each row that failed. Read them after the threads are done."""
        return self._errors

    def first_error(self) -> tuple[int, BaseException] | None:
        """Return the first row that failed, and its error. Call it after the threads are done."""
        return min(self._errors.items(), default=None)

    def images(self, stop: int | None = None) -> list[AnyArray]:
        """Return the images of rows before `stop` as arrays that do not share memory."""
        images = []
        for image in self._images[:stop]:
            assert image is not None
            images.append(image.copy() if self._is_view(image) else image)
        return images

    def _is_view(self, image: AnyArray) -> bool:
        return self._array is not None and np.may_share_memory(image, self._array)

    def result(self) -> AnyArray | list[AnyArray]:
        """Return the images as one array if their shapes agree, otherwise as a list."""
        if self._shapes_agree and self._array is not None:
            return self._array
        if not self.count:
            return np.empty((0, *self._shape), np.uint8)
        return self.images()


class DecodeThreads:
    """Threads that decode image stacks, the first stack first.

    Parameters
    ----------
    count : int
        The number of threads.
    """

    def __init__(self, count: int) -> None:
        self._count, self._process = count, os.getpid()
        self._thread_ids: set[int] = set()
        self._executor = ThreadPoolExecutor(
            count, "npstream-images", lambda: self._thread_ids.add(threading.get_ident())
        )

    @property
    def is_inherited(self) -> bool:
        """Whether a parent process made this object, and its threads do not exist here."""
        return os.getpid() != self._process

    def start(self, stacks: list[ImageStack]) -> list[Future[None]]:
        """Let the threads decode stacks; return the futures to wait for."""
        return [
            self._executor.submit(stack.decode)
            for stack in stacks
            for _ in range(min(self._count, stack.count))
        ]

    def close(self) -> None:
        """Stop the threads, after the images that they are decoding."""
        if self.is_inherited:
            return
        # A thread may free the iterator that it works for, and must not wait for itself.
        is_own_thread = threading.get_ident() in self._thread_ids
        self._executor.shutdown(wait=not is_own_thread, cancel_futures=True)
