"""Ridge regression of many rows, batch by batch, with a ridge that held-out rows choose."""

import torch
from torch import Tensor

RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
"""Ridges that are tried, as shares of the mean variance of the inputs."""


class Moments:
    """Counts, sums and products of rows to fit and of held-out rows: all that a regression needs of them.

    Args:
        centred: the regression has an intercept, so that it is one of differences from the means.
    """

    def __init__(self, centred: bool = True):
        self.centred = centred
        self.count = [0, 0]
        self.shift = self.total = self.products = torch.zeros(2)

    def add(self, rows: Tensor, held_out: Tensor) -> None:
        """Add rows (n, groups, columns). Products are summed in float32 within a call, in float64 over all calls.

        Args:
            held_out: (n,) whether a row is held out.
        """
        if not any(self.count):
            self.shift = rows.mean(0) * self.centred  # near the mean, float32 is exact enough
            self.total = self.shift.new_zeros(2, *self.shift.shape, dtype=torch.float64)
            self.products = self.total.new_zeros(*self.total.shape, self.total.shape[-1])
        for part, chosen in enumerate((~held_out, held_out)):
            own = (rows[chosen] - self.shift).movedim(0, 1)
            self.count[part] += own.shape[1]
            self.total[part] += own.sum(1, dtype=torch.float64)
            self.products[part] += own.mT @ own

    def mean(self, part: slice) -> Tensor:
        """(groups, columns) means of the rows to fit (`slice(0, 1)`) or of all rows, less `shift`; 0 if not centred."""
        return self.total[part].sum(0) / sum(self.count[part]) * self.centred

    def products_about(self, centre: Tensor, part: slice) -> Tensor:
        """(groups, columns, columns) mean products of the differences from `centre`, which is less `shift`, too."""
        total, count = self.total[part].sum(0), sum(self.count[part])
        outer = centre[:, :, None] * total[:, None] + (total - count * centre)[:, :, None] * centre[:, None]
        return (self.products[part].sum(0) - outer) / count if count else self.products[0] * torch.nan


def ridge_regression(
    moments: Moments, baseline: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor, list[float], float]:
    """Regress the last columns of the rows on the first ones, group by group.

    Every ridge is tried on the rows to fit, and the one with the smallest error on the held-out rows is used with all
    rows. A group for which the coefficients `baseline` are better still gets these.

    Args:
        baseline: (groups, targets, inputs) coefficients to beat; they say how many columns are inputs.
        weights: (groups, targets, targets) weights of the products of two targets' errors; None for the identity.

    Returns:
        Coefficients as `baseline`; the intercepts (groups, targets); the chosen ridges; the held-out error as a share
        of that of `baseline`.

    Example:
        >>> rows = torch.tensor([[[0.0, 1.0]], [[1.0, 3.0]], [[2.0, 5.0]], [[3.0, 7.0]]])  # the line 2 x + 1
        >>> moments = Moments()
        >>> moments.add(rows, held_out=torch.tensor([False, False, False, True]))
        >>> baseline = torch.zeros(1, 1, 1, dtype=torch.float64)
        >>> slope, intercept, ridges, share = ridge_regression(moments, baseline)
        >>> round(slope.item(), 2), round(intercept.item(), 2), ridges
        (2.0, 1.0, [0.0001])
    """
    ridges = baseline.new_tensor(RIDGES)
    fit, held_out, every = slice(0, 1), slice(1, 2), slice(0, 2)
    centre = moments.mean(fit)
    seen, unseen = moments.products_about(centre, fit), moments.products_about(centre, held_out)
    tried = (baseline, *(_ridge(seen, ridge, baseline) for ridge in ridges))
    errors = [_error(coefficients, unseen, weights) for coefficients in tried]
    least, best = torch.stack(errors).min(0)
    del seen, unseen, tried
    centre = moments.mean(every)
    found = _ridge(moments.products_about(centre, every), ridges[(best - 1).clamp(min=0)], baseline)
    better = (best > 0) & found.isfinite().flatten(1).all(1)
    found = torch.where(better[:, None, None], found, baseline)
    inputs, targets = (centre + moments.shift).split([baseline.shape[2], baseline.shape[1]], 1)
    chosen = sorted({RIDGES[i - 1] for i in best[better].tolist()})
    return found, targets - (found @ inputs[:, :, None])[:, :, 0], chosen, (least.sum() / errors[0].sum()).item()


def _ridge(moments: Tensor, ridge: Tensor, baseline: Tensor) -> Tensor:
    """Coefficients of the shape of `baseline`; NaN where the moments are too inexact for this ridge."""
    inputs = baseline.shape[2]
    gram = moments[:, :inputs, :inputs].clone()
    diagonal = gram.diagonal(dim1=1, dim2=2)
    diagonal += (ridge * diagonal.mean(1)).clamp(min=1e-30)[:, None]
    factor, failed = torch.linalg.cholesky_ex(gram)
    found = torch.cholesky_solve(moments[:, :inputs, inputs:], factor).mT
    return found.masked_fill((failed > 0)[:, None, None], torch.nan)


def _error(coefficients: Tensor, moments: Tensor, weights: Tensor | None) -> Tensor:
    """(groups,) mean squared error of the targets; infinite for coefficients that are NaN."""
    targets = torch.eye(coefficients.shape[1], dtype=torch.float64, device=coefficients.device)
    residual = torch.cat([coefficients, -targets.expand(len(coefficients), -1, -1)], 2)
    weighted = residual if weights is None else weights @ residual
    return ((residual @ moments) * weighted).sum((1, 2)).nan_to_num(torch.inf)
