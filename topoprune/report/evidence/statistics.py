"""Statistical tests whose unit of replication is the dense network.

With fewer than two networks there is no interval and no p-value: both are NaN. Equal values have no spread, which
leaves Student's t without a variance: they have no interval either, and their p-value is that of a sign-flip test.
"""

import warnings

import numpy as np
import pandas as pd
from scipy import stats

MARGIN = 0.5
"""Points of test accuracy that still count as equal."""

LEVEL = 0.05
"""Significance level of every test."""

NO_SPREAD = 1e-9
"""Values or residuals that differ by less than this are equal."""

PUBLISHED_THREADS = 2
"""Threads with which mixed models are fitted on every machine: those of the published edition."""

EQUIVALENCE_TESTS = ("p equivalent", "p not inferior", "p worse")
"""The p-values that `equivalence` returns."""


def t_interval(values: np.ndarray | pd.Series, level: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean; NaN for fewer than two values and for equal ones.

    Args:
        values: (n,) one value for each dense network.

    >>> [round(end, 2) for end in t_interval(np.array([1.0, 2.0, 3.0]))]
    [-0.48, 4.48]
    >>> t_interval(np.array([1.0, 1.0, 1.0]))
    (nan, nan)
    """
    if _lacks_spread(values):
        return np.nan, np.nan
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def p_above(values: np.ndarray | pd.Series) -> float:
    """One-sided p-value of the hypothesis that the mean lies above zero; NaN for fewer than two values.

    Student's t-test; for equal values the sign-flip test (Fisher, 1935), whose least p-value is 2 ** -n.

    >>> p_above(np.array([1.0, 1.0, 1.0]))
    0.125
    """
    if len(values) < 2:
        return np.nan
    if _lacks_spread(values):
        return 0.5 ** len(values) if np.mean(values) > 0 else 1.0
    return float(stats.ttest_1samp(values, 0, alternative="greater").pvalue)


def paired_difference(differences: np.ndarray | pd.Series) -> dict:
    """Mean of paired differences with its 95 % interval and two-sided p-value.

    Args:
        differences: (networks,) in any unit.

    Returns:
        seeds: number of networks; difference; low, high; p.

    >>> paired_difference(np.array([1.0, 1.0, 1.0]))
    {'seeds': 3, 'difference': 1.0, 'low': nan, 'high': nan, 'p': 0.25}
    """
    low, high = t_interval(differences)
    p = min(1.0, 2 * min(p_above(differences), p_above(-differences)))
    return {
        "seeds": len(differences),
        "difference": _mean(differences),
        "low": low,
        "high": high,
        "p": p if len(differences) > 1 else np.nan,
    }


def equivalence(differences: np.ndarray, margin: float = MARGIN) -> dict:
    """Two one-sided t-tests of paired differences against a margin (Schuirmann, 1987).

    Args:
        differences: (networks,) in the unit of `margin`.

    Returns:
        seeds: number of networks; difference: their mean; low, high: its 90 % interval; p equivalent: the larger
        p-value of the two tests; p not inferior, p worse: p-values of a mean above, and below, -margin.

    >>> round(equivalence(np.array([-0.1, 0.0, 0.1]))["p equivalent"], 3)
    0.007
    """
    low, high = t_interval(differences, 1 - 2 * LEVEL)
    above, below = p_above(differences + margin), p_above(margin - differences)
    tests = (max(above, below), above, p_above(-margin - differences))
    return {
        "seeds": len(differences),
        "difference": _mean(differences),
        "low": low,
        "high": high,
        **dict(zip(EQUIVALENCE_TESTS, tests, strict=True)),
    }


def holm(values: pd.Series) -> np.ndarray:
    """Correct p-values by Holm's method (1979); NaN stays NaN and counts as no test.

    >>> holm(pd.Series([0.01, np.nan, 0.03])).round(3)
    array([0.02,  nan, 0.03])
    """
    # statsmodels' multipletests gives the same, but collects garbage at every call, which takes up to a second.
    corrected = np.asarray(values, dtype=float).copy()
    order = corrected.argsort()[: np.count_nonzero(~np.isnan(corrected))]  # NaN sorts last
    steps = corrected[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected


def holm_in_families(p: pd.Series, tested: pd.Series) -> np.ndarray:
    """p corrected by Holm over the cells of a test, and over the cells that stand beside it by themselves.

    Args:
        p: of each cell.
        tested: whether the test has the cell.
    """
    corrected = p.to_numpy(dtype=float).copy()
    for family in (tested.to_numpy(dtype=bool), ~tested.to_numpy(dtype=bool)):
        corrected[family] = holm(p[family])
    return corrected


def standardized(values: pd.Series) -> pd.Series:
    """Values less their mean, divided by their standard deviation."""
    return (values - values.mean()) / values.std()


def residuals(frame: pd.DataFrame, column: str, factors: str) -> np.ndarray:
    """What a linear model of `factors` (a formula, such as "C(ratio) + C(seed)") leaves unexplained of a column."""
    import statsmodels.formula.api as smf

    return smf.ols(f"{column} ~ {factors}", frame).fit().resid.to_numpy()


def mixed_effect(formula: str, frame: pd.DataFrame, name: str) -> dict:
    """Effect of one term of a linear mixed model with a random intercept for each dense network.

    Intervals and p-values are Student's, with the residual degrees of freedom of all runs. With few networks the
    fit of the mixed model often fails to converge; then the networks are a factor, which gives nearly the same
    where the grid is balanced.

    Args:
        formula: of the fixed effects, such as "y ~ C(ratio) + x".
        frame: one row for each run; its column "seed" names the network.
        name: of the term.

    Returns:
        effect; low, high: its 95 % interval; p; model: "mixed" or "seeds as a factor". Only the effect is known
        with one network, without residual degrees of freedom, or where the model explains everything.
    """
    import statsmodels.formula.api as smf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a variance of zero between networks lies at the boundary
        factor = smf.ols(f"{formula} + C(seed)", frame).fit()
        if frame["seed"].nunique() < 2 or factor.df_resid < 1 or np.ptp(factor.resid) < NO_SPREAD:
            return {"effect": float(factor.params[name]), "low": np.nan, "high": np.nan, "p": np.nan, "model": ""}
        mixed = _mixed_fit(formula, frame, name)
    fit = factor if mixed is None else mixed
    effect, error = float(fit.params[name]), float(fit.bse[name])
    half = stats.t.ppf(1 - LEVEL / 2, factor.df_resid) * error
    return {
        "effect": effect,
        "low": effect - half,
        "high": effect + half,
        "p": float(2 * stats.t.sf(abs(effect) / error, factor.df_resid)),
        "model": "seeds as a factor" if mixed is None else "mixed",
    }


def slope_over_networks(frame: pd.DataFrame, factors: str = "1") -> dict:
    """Slope of y on x within each dense network, tested over the networks.

    The networks are the unit of replication: of n networks the test has n - 1 degrees of freedom, however many runs
    stand behind each slope. A network whose runs do not vary in x, given the factors, has no slope and is left out.

    Args:
        frame: one row for each run, with columns x, y and seed.
        factors: formula of what else explains y within a network.

    Returns:
        seeds, effect, low, high, p: as `paired_difference` of the slopes.
    """
    slopes = []
    for _, runs in frame.groupby("seed"):
        x, y = (residuals(runs, column, factors) for column in ("x", "y"))
        if np.ptp(x) > NO_SPREAD:
            slopes.append(x @ y / (x @ x))
    tested = paired_difference(np.array(slopes))
    return {"seeds": tested["seeds"], "effect": tested["difference"], **{k: tested[k] for k in ("low", "high", "p")}}


def error_on_other_networks(formula: str, frame: pd.DataFrame) -> float:
    """Root mean squared error of predicting each dense network from the others; NaN where these are too few.

    Args:
        formula: of a linear model for the column y.
        frame: one row for each run, with the columns of the formula and seed, ratio, method and cell.
    """
    import statsmodels.formula.api as smf

    if frame["seed"].nunique() < 2:
        return np.nan
    errors = []
    for seed in frame["seed"].unique():
        others, own = frame[frame["seed"] != seed], frame[frame["seed"] == seed]
        known = own["ratio"].isin(others["ratio"]) & own["method"].isin(others["method"])
        if "cell" in formula:
            known &= own["cell"].isin(others["cell"])
        own = own[known]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of columns that the other networks cannot tell apart
            fit = smf.ols(formula, others).fit()
        if fit.df_resid < 1:
            return np.nan
        errors.append(own["y"] - fit.predict(own))
    return float(np.sqrt(np.mean(np.concatenate(errors) ** 2)))


def _mixed_fit(formula: str, frame: pd.DataFrame, name: str):
    """Fit of the mixed model; None if it fails, does not converge, or gives the term no standard error.

    Whether a fit converges can hang on the rounding of matrix products, hence on their number of threads.
    """
    import statsmodels.formula.api as smf
    from threadpoolctl import threadpool_limits

    try:
        with threadpool_limits(PUBLISHED_THREADS, "blas"):
            fit = smf.mixedlm(formula, frame, groups=frame["seed"]).fit()
    except np.linalg.LinAlgError:
        return None
    return fit if fit.converged and np.isfinite(fit.bse[name]) and fit.bse[name] > 0 else None


def _lacks_spread(values: np.ndarray | pd.Series) -> bool:
    return len(values) < 2 or float(np.ptp(values)) < NO_SPREAD


def _mean(values: np.ndarray | pd.Series) -> float:
    return float(np.mean(values)) if len(values) else np.nan
