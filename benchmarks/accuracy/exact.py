"""Weights in 80 digits by the definition of each method.

Small programs are solved by pivoting, which may go any way it likes: what it found must then meet
the method's own conditions of optimality, which for a convex problem are proof. A ridge of 1e-40
beside unit diagonals picks one of several solutions with the same update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import mpmath
from torch import Tensor

Number = Any  # mpmath's own type is not typed
Vector = list[Number]
Matrix = list[Vector]

DIGITS = 80
_RIDGE = "1e-40"
_CLOSE = "1e-18"


class UncertainError(ArithmeticError):
    """A solution was not found, or does not meet its conditions."""


def in_digits(weigh: Callable[..., Vector]) -> Callable[..., Vector]:
    """Hands a function the rows in 80 digits, and works in them."""

    @wraps(weigh)
    def weighed(rows: Tensor, *options: Any) -> Vector:  # [T, P]
        with mpmath.workdps(DIGITS):
            return weigh(
                [[mpmath.mpf(number) for number in row] for row in rows.tolist()], *options
            )

    return weighed


def update_of(weights: Sequence[Number], rows: Tensor) -> list[float]:
    """Sums the rows in 80 digits."""
    with mpmath.workdps(DIGITS):
        return [float(mpmath.fdot(weights, map(mpmath.mpf, column))) for column in rows.T.tolist()]


@in_digits
def mgda(rows: Matrix) -> Vector:
    return _shortest(rows)


@in_digits
def sdmgrad(rows: Matrix, lamb: float = 0.3) -> Vector:
    mean = _combine([mpmath.mpf(1) / len(rows)] * len(rows), rows)
    lean = mpmath.mpf(lamb)
    shifted = [[g + lean * m for g, m in zip(row, mean, strict=True)] for row in rows]
    return [(w + lean / len(rows)) / (1 + lean) for w in _shortest(shifted)]


@in_digits
def upgrad(rows: Matrix) -> Vector:
    num_tasks = len(rows)
    lengths, cosines = _cosines(rows)
    weights = [mpmath.mpf(1) / num_tasks] * num_tasks
    for cosine, length in zip(cosines, lengths, strict=True):
        more = _nonneg(cosines, cosine)
        for j, (x, other) in enumerate(zip(more, lengths, strict=True)):
            weights[j] += x * length / other / num_tasks
    return weights


@in_digits
def dualproj(rows: Matrix) -> Vector:
    lengths, cosines = _cosines(rows)
    longest = max(lengths)
    wanted = [length / longest / len(rows) for length in lengths]
    more = _nonneg(cosines, [mpmath.fdot(row, wanted) for row in cosines])
    return [1 / mpmath.mpf(len(rows)) + x * longest / d for x, d in zip(more, lengths, strict=True)]


@in_digits
def cagrad(rows: Matrix, c: float = 0.4) -> Vector:
    num_tasks = len(rows)
    lengths, cosines = _cosines(rows)
    even = [mpmath.mpf(1) / num_tasks] * num_tasks
    mean = _combine(even, rows)
    with_mean = [mpmath.fdot(row, mean) for row in rows]
    radius = mpmath.mpf(c) * _length(mean)
    # At the level v, which all gradients of the mixture reach, more of them is C y = (v - m) / d on
    # its support. The length of the mixture grows with v: seek where it is the radius.
    low = min(with_mean)
    high = level = min(m + radius * d for m, d in zip(with_mean, lengths, strict=True))
    expected = None  # the support of which the level is the solution
    for _ in range(400):
        linear = [(m - level) / d for m, d in zip(with_mean, lengths, strict=True)]
        more = _nonneg(cosines, linear)
        found = [i for i, x in enumerate(more) if x > 0]
        if found == expected:
            break
        is_long = _quadratic(cosines, more) > radius**2
        low, high = (low, level) if is_long else (level, high)
        root = _level(cosines, lengths, with_mean, radius, found)
        is_inside = root is not None and low <= root <= high
        level, expected = (root, found) if is_inside else ((low + high) / 2, None)
    rising, start = _line(cosines, lengths, with_mean, found)
    more = [mpmath.mpf(0)] * num_tasks
    for place, e, a in zip(found, rising, start, strict=True):
        more[place] = (a + level * e) / lengths[place]
    total = sum(more)
    mixture = [x / total for x in more]
    along = _combine(mixture, rows)
    update = [m + radius * g / _length(along) for m, g in zip(mean, along, strict=True)]
    value = mpmath.fdot(along, mean) + radius * _length(along)
    for row, length in zip(rows, lengths, strict=True):
        _prove(mpmath.fdot(row, update) - value >= -_close(length * _length(mean)), "CAGrad")
    _prove(min(more) >= -_close(max(more)), "CAGrad")
    return [w + x for w, x in zip(even, more, strict=True)]


@in_digits
def fairgrad(rows: Matrix, alpha: float = 1.0) -> Vector:
    """Gives the bargain of Nash-MTL at 1; raises where none exists."""
    lengths, cosines = _cosines(rows)
    units = [[g / d for g in row] for row, d in zip(rows, lengths, strict=True)]
    if _length(_combine(_shortest(units), units)) < mpmath.mpf("1e-15"):
        raise UncertainError("no bargain: some mixture of the gradients is zero")
    power = 1 / mpmath.mpf(alpha)
    logs = [(power - 1) * mpmath.log(d) for d in lengths]
    v = [
        (mpmath.exp(b) / sum(max(x, 0) for x in row)) ** (1 / (1 + power))
        for b, row in zip(logs, cosines, strict=True)
    ]
    for _ in range(300):
        pull = [mpmath.exp(b) * x**-power for b, x in zip(logs, v, strict=True)]
        matrix = [list(row) for row in cosines]
        for i, (p, x) in enumerate(zip(pull, v, strict=True)):
            matrix[i][i] += power * p / x
        residual = [p - mpmath.fdot(row, v) for p, row in zip(pull, cosines, strict=True)]
        if max(abs(r) / p for r, p in zip(residual, pull, strict=True)) < _close(1):
            return [x / d for x, d in zip(v, lengths, strict=True)]
        for i, (step, x) in enumerate(zip(_solve(matrix, residual), v, strict=True)):
            ratio = step / x
            v[i] = x * (1 + min(ratio, 9)) if ratio > 0 else x / (1 - max(ratio, -9))
    raise UncertainError("a bargain did not converge")


@in_digits
def imtl_g(rows: Matrix) -> Vector:
    weights = _impartial(rows)
    total = sum(weights)
    if abs(total) <= _close(sum(map(abs, weights))):
        return [mpmath.mpf(0)] * len(rows)  # as where no update has equal projections
    return [w / total for w in weights]


@in_digits
def config(rows: Matrix) -> Vector:
    weights = _impartial(rows)
    update = _combine(weights, rows)
    square = mpmath.fdot(update, update)
    if square <= _close(1) ** 2:
        return [mpmath.mpf(0)] * len(rows)  # as where all angles are right
    onto = sum(mpmath.fdot(row, update) for row in rows) / square
    return [w * onto for w in weights]


@in_digits
def aligned_mtl(rows: Matrix) -> Vector:
    longest = max(map(_length, rows))
    units = [[g / longest for g in row] for row in rows]
    gram = [[mpmath.fdot(one, two) for two in units] for one in units]
    values, vectors = mpmath.eigsy(mpmath.matrix(gram))
    kept = [i for i in range(len(rows)) if values[i] > max(values) / 10**6]  # as it is defined
    weights = [mpmath.mpf(0)] * len(rows)
    for i in kept:
        vector = list(vectors[:, i])
        stretch = mpmath.sqrt(min(values[j] for j in kept) / values[i]) * sum(vector)
        weights = [w + stretch * x for w, x in zip(weights, vector, strict=True)]
    return weights


@in_digits
def pcgrad(rows: Matrix, orders: Sequence[Sequence[int]]) -> Vector:
    return _visits(rows, orders, mpmath.mpf(0))


@in_digits
def gradvac(rows: Matrix, orders: Sequence[Sequence[int]], target: float) -> Vector:
    """Lifts every pair's cosine to one target, of which no pair has been moved yet."""
    return _visits(rows, orders, mpmath.mpf(target))


@in_digits
def dbmtl(rows: Matrix, losses: Sequence[float]) -> Vector:
    lengths = list(map(_length, rows))
    longest = max(d / loss for d, loss in zip(lengths, losses, strict=True))
    return [longest / d for d in lengths]


# Parts.


def _close(unit: Number) -> Number:
    return mpmath.mpf(_CLOSE) * unit


def _prove(holds: bool, method: str) -> None:
    if not holds:
        raise UncertainError(f"{method}: the solution does not meet its conditions")


def _length(vector: Vector) -> Number:
    return mpmath.sqrt(mpmath.fdot(vector, vector))


def _combine(weights: Vector, rows: Matrix) -> Vector:
    return [mpmath.fdot(weights, column) for column in zip(*rows, strict=True)]


def _quadratic(matrix: Matrix, vector: Vector) -> Number:
    return mpmath.fdot(vector, [mpmath.fdot(row, vector) for row in matrix])


def _cosines(rows: Matrix, ridge: str = _RIDGE) -> tuple[Vector, Matrix]:
    lengths = list(map(_length, rows))
    units = [[g / d for g in row] for row, d in zip(rows, lengths, strict=True)]
    cosines = [[mpmath.fdot(one, two) for two in units] for one in units]
    for i, row in enumerate(cosines):
        row[i] += mpmath.mpf(ridge)
    return lengths, cosines


def _solve(matrix: Matrix, right: Vector) -> Vector:
    """Solves a positive definite system by Cholesky's method."""
    lower: Matrix = []
    y: Vector = []
    for i, row in enumerate(matrix):
        line: Vector = []
        for j in range(i):
            line.append((row[j] - mpmath.fdot(line, lower[j][:j])) / lower[j][j])
        rest = row[i] - mpmath.fdot(line, line)
        if rest <= 0:
            raise UncertainError("a matrix is not positive definite")
        y.append((right[i] - mpmath.fdot(line, y)) / mpmath.sqrt(rest))
        lower.append([*line, mpmath.sqrt(rest)])
    x: Vector = []
    for i in reversed(range(len(matrix))):
        above = [lower[j][i] for j in range(len(matrix) - 1, i, -1)]
        x.append((y[i] - mpmath.fdot(above, x)) / lower[i][i])
    return x[::-1]


def _on(matrix: Matrix, support: Sequence[int]) -> Matrix:
    return [[matrix[i][j] for j in support] for i in support]


def _nonneg(matrix: Matrix, linear: Vector) -> Vector:
    """Finds x >= 0 with z = M x + q >= 0 and x z = 0, by block pivoting with Murty's fallback."""
    size, support, best, patience = len(linear), set[int](), len(linear) + 1, 5
    for _ in range(50 * size + 100):
        places = sorted(support)
        found = _solve(_on(matrix, places), [-linear[i] for i in places])
        x = [mpmath.mpf(0)] * size
        for place, number in zip(places, found, strict=True):
            x[place] = number
        z = [mpmath.fdot(row, x) + q for row, q in zip(matrix, linear, strict=True)]
        wrong = [i for i in range(size) if (x[i] < 0 if i in support else z[i] < 0)]
        if not wrong:
            return x
        if len(wrong) < best:
            best, patience = len(wrong), 5
        else:
            patience -= 1
        support ^= set(wrong) if patience > 0 else {wrong[-1]}
    raise UncertainError("a nonnegative program did not end")


def _shortest(rows: Matrix) -> Vector:
    """Weights of the shortest vector of the hull."""
    lengths, cosines = _cosines(rows)
    inverse = [min(lengths) / d for d in lengths]
    matrix = [
        [c + s * t for c, t in zip(row, inverse, strict=True)]
        for row, s in zip(cosines, inverse, strict=True)
    ]
    x = _nonneg(matrix, [-s for s in inverse])
    weights = [s * number for s, number in zip(inverse, x, strict=True)]
    weights = [w / sum(weights) for w in weights]
    shortest = _combine(weights, rows)
    square = mpmath.fdot(shortest, shortest)
    for row, length in zip(rows, lengths, strict=True):
        _prove(mpmath.fdot(row, shortest) - square >= -_close(length * min(lengths)), "MGDA")
    return weights


def _line(
    cosines: Matrix, lengths: Vector, with_mean: Vector, on: Sequence[int]
) -> tuple[Vector, Vector]:
    """The solution on a support as a line over the level: its slope, and where it starts."""
    matrix = _on(cosines, on)
    rising = _solve(matrix, [1 / lengths[i] for i in on])
    start = _solve(matrix, [-with_mean[i] / lengths[i] for i in on])
    return rising, start


def _level(
    cosines: Matrix, lengths: Vector, with_mean: Vector, radius: Number, on: Sequence[int]
) -> Number | None:
    """The level at which the line of a support is as long as the radius."""
    if not on:
        return None
    rising, start = _line(cosines, lengths, with_mean, on)
    matrix = _on(cosines, on)
    along = [mpmath.fdot(row, rising) for row in matrix]
    q2, q1 = mpmath.fdot(rising, along), mpmath.fdot(start, along)
    square = q1**2 - q2 * (_quadratic(matrix, start) - radius**2)
    return None if square < 0 else (mpmath.sqrt(square) - q1) / q2


def _impartial(rows: Matrix) -> Vector:
    """Weights of equal angles, up to a factor: those of the pseudo-inverse of the cosines."""
    lengths, cosines = _cosines(rows, "0")
    squares = [[mpmath.fdot(one, two) for two in cosines] for one in cosines]
    for i, row in enumerate(squares):
        row[i] += mpmath.mpf(_RIDGE)
    v = _solve(squares, [sum(row) for row in cosines])
    return [x / d for x, d in zip(v, lengths, strict=True)]


def _visits(rows: Matrix, orders: Sequence[Sequence[int]], target: Number) -> Vector:
    weights = [mpmath.mpf(0)] * len(rows)
    for task, order in enumerate(orders):
        vector, share = list(rows[task]), [mpmath.mpf(0)] * len(rows)
        share[task] += 1
        for other in order:
            if other == task:
                continue
            mine, its = _length(vector), _length(rows[other])
            if not mine:
                break
            cosine = mpmath.fdot(vector, rows[other]) / mine / its
            if cosine < target:
                beside = mpmath.sqrt(1 - target**2)
                step = mine / its * (target * mpmath.sqrt(1 - cosine**2) / beside - cosine)
                vector = [v + step * g for v, g in zip(vector, rows[other], strict=True)]
                share[other] += step
        weights = [w + s for w, s in zip(weights, share, strict=True)]
    return weights
