"""Logistic regression by damped Newton over a stream of patches.

Minimises ``C * sum_i s_i log(1 + exp(-y_i (x_i . w + b))) + |w|^2 / 2`` with y in {-1, 1} and no penalty on the bias:
scikit-learn's objective, whose ``newton-cholesky`` is the reference. One pass over the rows per iteration: while it
measures the loss at every candidate step length, it already gathers gradient and Hessian at the full step, which is
nearly always the one taken.

Whether a plane separates the classes is asked of the data, not of the penalised solution, which may leave rows on the
wrong side of a plane that it could have reached with larger weights. The same method goes on without a penalty until
one of two things is sure. Either all rows lie on their sides of the plane that it has come to. Or no plane separates:
with the rows x (and a 1 for the bias), their sides y and the residuals r > 0, a plane v whose smallest logit is m has
``m sum r <= sum r y (v . x) <= |v| |sum r y x|``, and the last factor is the gradient, which falls to 0 where classes
overlap. A sample that fits in memory is asked first: if its classes overlap, so do those of all rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.special import expit

from dlprobe.errors import ProbeError
from dlprobe.probes.exact.threads import TileThreads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

#: Rows that a thread converts to float64 at a time; at width 768 they take 13 MB.
TILE_ROWS = 2048
STEP_LENGTHS = np.asarray(0.5 ** np.arange(12), np.float64)
#: Above it the penalty no longer covers the rounding of a float32 Hessian.
FLOAT32_MAX_C = 100.0
#: Margin, in units of the norm of weights and bias, below which classes count as overlapping.
SURELY_OVERLAP = 1e-7
SEPARATION_STEPS = 20
_ARMIJO = 1e-4
_REUSE_BELOW = 0.05
#: Makes the penalty vanish in rounding.
_NO_PENALTY = 1e15
#: Rows of each class that a sample holds, at most, for each feature and the bias; at least half of them are kept.
_SAMPLE_ROWS = 4


class Rows(NamedTuple):
    """Some rows of the data.

    Parameters
    ----------
    X : ndarray of float16, float32 or float64, shape (n, width)
    y : ndarray, shape (n,)
        1 positive, 0 negative, below 0 ignored.
    sample_weight : ndarray, shape (n,), or None
    """

    X: NDArray[np.floating]
    y: NDArray[np.generic]
    sample_weight: NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LogisticSolution:
    """The solution, and how it was reached.

    Parameters
    ----------
    weights : ndarray of float64, shape (width,)
    bias : float
    C : float
    gradient : float
        Largest absolute component of the gradient of the mean loss.
    iterations, passes : int
        Newton steps taken, and times the rows were read.
    converged : bool
        Whether `gradient` is below the tolerance.
    separable : bool or None
        Whether a plane separates the classes, so that only the penalty bounds the weights. True: one was found that
        has every row on its side. False: no plane has all rows further on their sides than `SURELY_OVERLAP` times the
        norm of its weights and bias. None: `SEPARATION_STEPS` further steps over the rows decided neither.
    hessian : {'float32', 'float64'}
        Precision of the Hessian at the end.
    total_weight : float
        Sum of the sample weights.
    """

    weights: NDArray[np.float64]
    bias: float
    C: float
    gradient: float
    iterations: int
    passes: int
    converged: bool
    separable: bool | None
    hessian: Literal["float32", "float64"]
    total_weight: float


def stream_logistic(
    rows: Callable[[], Iterable[Rows]],
    width: int,
    *,
    C: float = 1.0,
    tolerance: float = 1e-9,
    max_iterations: int = 100,
    start: LogisticSolution | None = None,
    separable: bool | None = None,
) -> LogisticSolution:
    """Fit a logistic regression exactly, reading the rows once per iteration.

    The gradient is float64 throughout. The Hessian is gathered in float32 products and float64 sums as long as that
    helps: above ``C = 100``, when its Cholesky factorisation fails or when a step does not halve the gradient, it
    becomes float64. Once steps shrink the gradient twentyfold, the last factorisation is used again.

    Parameters
    ----------
    rows : callable
        Returns the rows from the start each time it is called, in any portions, which must stay as they are.
    width : int
        Of the rows.
    C : float
        Inverse of the L2 penalty.
    tolerance : float
        Stops when the largest absolute component of the gradient of the mean loss is below it.
    max_iterations : int
        Newton steps at most; stopping there leaves `converged` False.
    start : LogisticSolution, optional
        Solution of a problem near this one, such as at another C, from which to begin; zeros otherwise.
    separable : bool, optional
        Whether a plane separates the classes, if that is known, as it is from a solution of the same rows at another C;
        otherwise the rows are asked.

    Returns
    -------
    LogisticSolution

    Raises
    ------
    ProbeError
        If C is out of its range, a class is missing, a value is not finite, a weight is negative, or `rows` returns
        others the second time.
    """
    if not 0 < C < np.inf:
        msg = f"C is {C}; the inverse of the penalty must be finite and above 0"
        raise ProbeError(msg)
    point = np.zeros(width + 1) if start is None else np.append(start.weights, start.bias)
    sample = _Sample(_SAMPLE_ROWS * (width + 1)) if separable is None else None
    with TileThreads() as threads:
        newton = _Newton(rows, width, C, threads, sample)
        end = newton.descend(point, lambda now: now.size <= tolerance, max_iterations)
        hessian: Literal["float32", "float64"] = "float32" if newton.single else "float64"
        if sample is not None:
            separable = end.now.margin > 0 or newton.separates(end.point, sample)
    return LogisticSolution(
        weights=end.point[:-1].copy(),
        bias=float(end.point[-1]),
        C=C,
        gradient=end.now.size,
        iterations=end.iterations,
        passes=newton.passes,
        converged=end.now.size <= tolerance,
        separable=separable,
        hessian=hessian,
        total_weight=newton.total,
    )


class _Pass(NamedTuple):
    """What one reading of the rows yields; losses are means and include the penalty.

    `margin` is the smallest logit towards the own side, `residual` the mean of absolute residuals.
    """

    losses: NDArray[np.float64]
    gradient: NDArray[np.float64]
    margin: float
    residual: float

    @property
    def size(self) -> float:
        return float(np.abs(self.gradient).max())

    @property
    def decides(self) -> bool:
        """Whether the classes are known to be apart or, if there is no penalty, to overlap."""
        return self.margin > 0 or float(np.linalg.norm(self.gradient)) <= SURELY_OVERLAP * self.residual


class _End(NamedTuple):
    """Where a descent ended."""

    point: NDArray[np.float64]
    now: _Pass
    iterations: int


class _Tile(NamedTuple):
    """Rows that count, in their own precision, their classes and weights."""

    X: NDArray[np.floating]
    y: NDArray[np.float64]
    weight: NDArray[np.float64]


class _Sample:
    """Rows of both classes, evenly thinned so that there are never more of one than `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: tuple[list[NDArray[np.floating]], ...] = ([], [])
        self._stride = [1, 1]
        self._seen = [0, 0]

    def add(self, X: NDArray[np.floating], y: NDArray[np.float64]) -> None:
        for side in (0, 1):
            mine = np.flatnonzero(y == side)
            numbers = self._seen[side] + np.arange(len(mine))
            self._kept[side].extend(row.copy() for row in X[mine[numbers % self._stride[side] == 0]])
            self._seen[side] += len(mine)
            while len(self._kept[side]) > self._most:
                del self._kept[side][1::2]
                self._stride[side] *= 2

    def rows(self) -> list[Rows]:
        return [Rows(np.stack(kept), np.full(len(kept), side)) for side, kept in enumerate(self._kept)]


class _Newton:
    """State of a solution; a point is the weights with the bias at the end."""

    def __init__(
        self,
        rows: Callable[[], Iterable[Rows]],
        width: int,
        C: float,
        threads: TileThreads,
        sample: _Sample | None = None,
    ) -> None:
        self.rows = rows
        self.width = width
        self.threads = threads
        self.single = C <= FLOAT32_MAX_C or C == _NO_PENALTY
        self.total = self._count(sample)
        self.penalty = 1 / (C * self.total)
        self.factor: tuple[NDArray[np.float64], bool] | None = None
        self.hessian = np.zeros((width + 1, width + 1))
        self.passes = 0

    def descend(self, point: NDArray[np.float64], done: Callable[[_Pass], bool], max_iterations: int) -> _End:
        """Take Newton steps until `done` says so of a pass."""
        now = self._read(point, np.zeros_like(point), curvature=True)
        loss, iterations, shrink = now.losses[0], 0, 1.0
        while not done(now) and iterations < max_iterations:
            before = now.size
            direction = self._direction(point, now.gradient)
            after = self._read(point, direction, curvature=shrink > _REUSE_BELOW)
            length = self._step_length(loss, after.losses, float(now.gradient @ direction))
            point = point + length * direction
            if length != 1:
                after = self._read(point, np.zeros_like(point), curvature=True)
            now, loss = after, after.losses[0]
            shrink = now.size / before
            self.single = self.single and shrink < 0.5
            iterations += 1
        return _End(point, now, iterations)

    def separates(self, point: NDArray[np.float64], sample: _Sample) -> bool | None:
        """Tell whether a plane separates the classes, from a point on; None if that is not known in the end."""
        rows = sample.rows()
        sampled = _Newton(lambda: rows, self.width, _NO_PENALTY, self.threads)
        few = sampled.descend(point, lambda now: now.decides, SEPARATION_STEPS)
        if few.now.decides and few.now.margin <= 0:
            return False
        self.penalty, self.single = 1 / (_NO_PENALTY * self.total), True
        end = self.descend(few.point, lambda now: now.decides, SEPARATION_STEPS)
        return end.now.margin > 0 if end.now.decides else None

    def _step_length(self, loss: float, losses: NDArray[np.float64], slope: float) -> float:
        """Return the longest step that lowers the loss enough; the full one once differences drown in rounding."""
        enough = losses <= loss + _ARMIJO * STEP_LENGTHS * slope
        if -slope <= 1e-13 * max(abs(loss), 1e-300) or enough[0]:
            return 1.0
        return float(STEP_LENGTHS[np.argmax(enough)] if enough.any() else STEP_LENGTHS[np.argmin(losses)])

    def _direction(self, point: NDArray[np.float64], gradient: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.factor is None:
            try:
                self.factor = cho_factor(self.hessian, lower=True)
            except LinAlgError:
                self.single = False
                self._read(point, np.zeros_like(point), curvature=True)
                self.factor = cho_factor(
                    self.hessian + 1e-12 * np.trace(self.hessian) * np.eye(len(gradient)), lower=True
                )
        return np.asarray(cho_solve(self.factor, -gradient))

    def _read(self, point: NDArray[np.float64], direction: NDArray[np.float64], *, curvature: bool) -> _Pass:
        """Measure losses along a direction, and gradient (and with `curvature` the Hessian) at its end."""
        lengths = STEP_LENGTHS if direction.any() else STEP_LENGTHS[:1]
        both = np.stack([point, direction], axis=1)
        found, *others = self.threads.fold(
            self._known(),
            lambda: _Sums(len(lengths), self.width, curvature=curvature),
            lambda sums, tile: sums.add(tile, both, lengths, single=self.single),
        )
        for other in others:
            found.join(other)
        self.passes += 1
        self._require_same(found.weight)
        if curvature:
            self._set_hessian(found.hessian)
        gradient = found.gradient / self.total
        gradient[:-1] += self.penalty * (point + direction)[:-1]
        norms = np.square(point[:-1, None] + np.outer(direction[:-1], lengths)).sum(axis=0)
        losses = found.losses / self.total + 0.5 * self.penalty * norms
        return _Pass(losses, gradient, found.margin, found.residuals / self.total)

    def _require_same(self, total: float) -> None:
        if not math.isclose(total, self.total, rel_tol=1e-9):
            advice = "give a callable that starts again from the first row each time"
            msg = f"the rows of a logistic regression weigh {total:g} now and {self.total:g} at first; {advice}"
            raise ProbeError(msg)

    def _set_hessian(self, sums: NDArray[np.float64]) -> None:
        self.hessian = sums / self.total
        self.hessian[np.arange(self.width), np.arange(self.width)] += self.penalty
        self.factor = None

    def _known(self) -> Iterator[_Tile]:
        """Yield the rows that count, in their own precision."""
        for X, y, sample_weight in self.rows():
            for start in range(0, len(X), TILE_ROWS):
                part = slice(start, start + TILE_ROWS)
                labels = np.asarray(y[part], np.float64)
                weight = np.ones(len(labels)) if sample_weight is None else np.asarray(sample_weight[part], np.float64)
                known = (labels >= 0) & (weight != 0)
                yield _Tile(X[part] if known.all() else X[part][known], labels[known], weight[known])

    def _count(self, sample: _Sample | None) -> float:
        """Return the sum of weights, after making sure that there are two classes and only numbers."""
        total = np.zeros(2)
        for X, y, weight in self._known():
            if X.shape[1] != self.width or not np.isfinite(X).all():
                msg = (
                    f"rows for a logistic regression are not finite or of another width than {self.width}; verify them"
                )
                raise ProbeError(msg)
            if not (np.isfinite(weight) & (weight > 0)).all():
                msg = "rows for a logistic regression have weights that are negative or not finite; correct them"
                raise ProbeError(msg)
            total += [weight @ (y == 0), weight @ (y == 1)]
            if sample is not None:
                sample.add(X, y)
        if not total.all():
            found = "none" if not total.any() else ("only positive" if total[1] else "only negative")
            msg = f"a logistic regression needs patches of both classes, there are: {found}"
            raise ProbeError(msg)
        return float(total.sum())


class _Sums:
    """What a thread adds up in one pass: losses at some step lengths, and what it finds at the end of the full step."""

    def __init__(self, lengths: int, width: int, *, curvature: bool) -> None:
        self.losses = np.zeros(lengths)
        self.gradient = np.zeros(width + 1)
        self.hessian = np.zeros((width + 1, width + 1) if curvature else (0, 0))
        self.margin, self.weight, self.residuals = np.inf, 0.0, 0.0

    def add(self, tile: _Tile, both: NDArray[np.float64], lengths: NDArray[np.float64], *, single: bool) -> None:
        """Add a tile; `both` holds point and direction as columns, and the Hessian is of the precision asked for."""
        X, y, weight = tile.X.astype(np.float64, copy=False), tile.y, tile.weight
        logits = X @ both[:-1] + both[-1]
        along = logits[:, :1] + lengths * logits[:, 1:]
        self.losses += weight @ (np.logaddexp(0, along) - y[:, None] * along)
        end = along[:, 0]
        self.margin = min(self.margin, float(np.min((2 * y - 1) * end, initial=np.inf)))
        probability = expit(end)
        residual = weight * (probability - y)
        self.gradient[:-1] += residual @ X
        self.gradient[-1] += residual.sum()
        self.residuals += float(np.abs(residual).sum())
        self.weight += float(weight.sum())
        if self.hessian.size:
            self._add_curvature(X, weight * probability * (1 - probability), single=single)

    def join(self, other: _Sums) -> None:
        """Add what another thread has found."""
        self.losses += other.losses
        self.gradient += other.gradient
        self.hessian += other.hessian
        self.margin = min(self.margin, other.margin)
        self.weight += other.weight
        self.residuals += other.residuals

    def _add_curvature(self, X: NDArray[np.float64], weight: NDArray[np.float64], *, single: bool) -> None:
        """Add ``X' diag(weight) X``, bordered by the bias."""
        scaled = X.astype(np.float32) if single else X.copy()
        scaled *= np.sqrt(weight)[:, None].astype(scaled.dtype)
        self.hessian[:-1, :-1] += _gram(scaled)
        self.hessian[-1, :-1] += weight @ X
        self.hessian[-1, -1] += weight.sum()


def _gram(rows: NDArray[Any]) -> NDArray[Any]:
    """Return the products of columns; of an array and itself, NumPy computes one triangle."""
    product: NDArray[Any] = rows.T @ rows
    return product
