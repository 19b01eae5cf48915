"""What users hand to a metric, as numpy arrays: numpy, torch on any device or graph, lists; with one line for what is no such thing."""

from __future__ import annotations

import numbers

import numpy as np

from saga_lib.common.errors import SagaError, first_line
from saga_lib.common.ranges import shown

EXTREME = 50  # exponents of 2 beyond which rows are scaled: the square of 2**50, summed over many columns, still fits into float32


def as_array(values: object, what: str) -> np.ndarray:
    """Return an array of numbers or texts; torch tensors are detached, those in bfloat16 become float32. Lists keep what they hold.

    `what` names it in the `SagaError` for what cannot be an array.
    """
    try:
        if hasattr(values, "detach"):  # torch is not imported for this
            values = values.detach().cpu()
            return (values.float() if values.is_floating_point() and values.element_size() < 4 else values).numpy()
        if isinstance(values, list | tuple) and any(hasattr(value, "detach") for value in values):
            return np.stack([as_array(value, what) for value in values])
        if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):  # pandas' own are named one by one
            raise ValueError("some are masked; leave these out")
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        raise SagaError(f"{what} must be an array of numbers: {first_line(error)}") from None


def as_rows(embeddings: object, what: str) -> np.ndarray:
    """Return embeddings (N, D) as contiguous float32, to which other types are rounded.

    Rows that are so long or short that float32 or its squares would not hold them are scaled by a power of two, which changes no
    direction. Raises `SagaError` unless there is at least one row and column of finite real numbers.
    """
    rows = as_array(embeddings, what)
    if rows.ndim != 2 or rows.size == 0:
        raise SagaError(f"{what} must be (N, D) with N, D >= 1, got {_described(rows)}")
    if rows.dtype.kind not in "fiu":
        raise SagaError(f"{what} must be real numbers, got {rows.dtype} such as {shown(rows.item(0))}")
    rows = rows.astype(np.float64) if rows.dtype.itemsize > 8 else rows
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise SagaError(f"{what} row {int(np.argmin(finite))} is not finite: the encoder has diverged, lower its learning rate")
    largest = np.maximum(rows.max(axis=1).astype(np.float64), -rows.min(axis=1).astype(np.float64))
    extreme = (largest > 0) & (np.abs(np.frexp(largest)[1]) > EXTREME)
    if extreme.any():
        rows = rows.astype(np.float64)
        rows[extreme] = np.ldexp(rows[extreme], -np.frexp(largest[extreme])[1][:, None])
    return np.ascontiguousarray(rows, dtype=np.float32)


def as_labels(labels: object, count: int | None = None) -> np.ndarray:
    """Return labels (N,) as an array of numbers or of texts, which can be compared and sorted.

    Raises `SagaError` unless there are `count` of them, if it is given, all of one kind and none missing, such as None, NaN or infinity.
    """
    if isinstance(labels, list | tuple):  # numpy would turn [None, "a"] and [nan, "a"] into texts
        array = np.empty(len(labels), dtype=object)
        array[:] = [as_array(label, "labels").item() if hasattr(label, "item") and np.ndim(label) == 0 else label for label in labels]
    else:
        array = as_array(labels, "labels")
    if array.ndim != 1 or count not in (None, len(array)):
        raise SagaError(f"labels must be ({'N' if count is None else count},), one per embedding, got {_described(array)}")
    if array.dtype.kind in "biuUS" or (array.dtype.kind == "f" and np.isfinite(array).all()):
        return array
    values = array.tolist()
    kinds = [_kind(value) for value in values]
    for place, kind in enumerate(kinds):
        if kind is None or kind != kinds[0]:
            raise SagaError(
                f"labels must be numbers or names, all of one kind and none missing; label {place} is {shown(values[place])}: leave out "
                "what has no class"
            )
    if kinds[0] == "name":
        return array.astype(str)
    try:
        return np.array(values, dtype=np.int64) if all(isinstance(value, int) for value in values) else array
    except OverflowError:
        return array


def as_ranks(neighbours: object, count: int, k: int) -> np.ndarray:
    """Return the first k columns of the neighbours (N, >= k) of `count` queries among themselves, as indices.

    Raises `SagaError` unless they are indices of the other items: a query among its own neighbours would always be right.
    """
    ranks = as_array(neighbours, "neighbours")
    if ranks.ndim != 2 or len(ranks) != count or ranks.shape[1] < k:
        raise SagaError(f"neighbours must be ({count}, >= {k}), got {_described(ranks)}")
    ranks = ranks[:, :k]
    if ranks.dtype.kind not in "iu" or ranks.min() < 0 or ranks.max() >= count:
        raise SagaError(f"neighbours must be whole numbers from 0 to {count - 1}, indices of the embeddings")
    if (ranks == np.arange(count)[:, None]).any():
        raise SagaError("neighbours hold queries themselves: search with nearest_neighbours(embeddings, k), which leaves each one out")
    return ranks


def _described(array: np.ndarray) -> str:
    return f"shape {array.shape}" if array.ndim else shown(array.item())


def _kind(label: object) -> str | None:
    """Return whether a label is a name or a number, None if it is neither."""
    if isinstance(label, str):
        return "name"
    return "number" if isinstance(label, numbers.Real) and label == label and abs(label) != float("inf") else None
