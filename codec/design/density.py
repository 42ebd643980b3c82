"""The density of features at a cut: an asymmetric Laplace variable behind a (leaky) ReLU.

X has density  A·exp(−λκ(x−μ)) for x ≥ μ,  A·exp((λ/κ)(x−μ)) for x < μ,  A = λ/(κ + 1/κ)
and Y = X for X ≥ 0, sX for X < 0 (s = 0: ReLU, a point mass P(X ≤ 0) at zero).
The density of Y has at most three exponential pieces. Every integral below is a sum over them in closed form.
Source: Cohen, Choi, Bajić 2021 §III, eqs. (2)–(8); here for any slope s ∈ [0, 1) and μ of either sign.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

KAPPA = 0.5
"""κ of the paper."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One exponential piece of the density: value·exp(rate·(y − anchor)) on [low, high].

    An infinite end is where the density falls to zero.
    """

    low: float
    high: float
    anchor: float
    value: float
    rate: float

    def moment(self, low: float, high: float, centre: float) -> tuple[float, float, float]:
        """∫ (y − centre)^k f(y) dy for k = 0, 1, 2 over [low, high] ∩ this piece."""
        a, b = max(low, self.low), min(high, self.high)
        if a >= b:
            return 0.0, 0.0, 0.0
        r = self.rate
        fa = self.value * math.exp(r * (a - self.anchor)) if math.isfinite(a) else 0.0
        fb = self.value * math.exp(r * (b - self.anchor)) if math.isfinite(b) else 0.0
        ua, ub = (a - centre if fa else 0.0), (b - centre if fb else 0.0)
        if math.isfinite(a) and math.isfinite(b) and abs(r) * (b - a) < 1e-2:
            # The closed form cancels for a nearly flat piece: Gauss–Legendre is exact to rounding there.
            half = (b - a) / 2
            y = a + half * (_NODES + 1)
            f = half * _WEIGHTS * self.value * np.exp(r * (y - self.anchor))
            u = y - centre
            return float(f.sum()), float((f * u).sum()), float((f * u * u).sum())
        m0 = (fb - fa) / r
        m1 = (ub * fb - ua * fa) / r - m0 / r
        m2 = (ub * ub * fb - ua * ua * fa) / r - 2 * m1 / r
        return m0, m1, m2


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)


@dataclass(frozen=True, kw_only=True)
class FeatureDensity:
    """Distribution of Y. rate: λ > 0. location: μ. slope: s in [0, 1). kappa: κ > 0."""

    rate: float
    location: float
    slope: float
    kappa: float = KAPPA

    def __post_init__(self) -> None:
        if not (self.rate > 0 and 0 <= self.slope < 1 and self.kappa > 0 and math.isfinite(self.location)):
            raise ValueError(f"need λ > 0, 0 ≤ s < 1, κ > 0 and a finite μ; got {self}")

    @property
    def pieces(self) -> Sequence[Piece]:
        """The exponential pieces, left to right; the point mass at zero of s = 0 is not among them."""
        mu, s = self.location, self.slope
        a = self.rate / (self.kappa + 1 / self.kappa)
        right, left = -self.rate * self.kappa, self.rate / self.kappa
        out = []
        for low, high, rate in (
            (-math.inf, min(mu, 0.0), left),
            (min(mu, 0.0), max(mu, 0.0), left if mu > 0 else right),
            (max(mu, 0.0), math.inf, right),
        ):
            negative = high <= 0
            if low == high or (negative and s == 0):
                continue
            scale = s if negative else 1.0
            # Anchored at an end of the piece and not at μ, which can be so far away that the exponential overflows.
            x = low if math.isfinite(low) else high
            value = a / scale * math.exp(rate * (x - mu))
            out.append(Piece(low=low * scale, high=high * scale, anchor=x * scale, value=value, rate=rate / scale))
        return out

    @property
    def zero_mass(self) -> float:
        """P(Y = 0): P(X ≤ 0) for s = 0, else 0."""
        if self.slope > 0:
            return 0.0
        k, mu, lam = self.kappa, self.location, self.rate
        if mu >= 0:
            return k * k / (1 + k * k) * math.exp(-lam / k * mu)
        return 1 - math.exp(lam * k * mu) / (1 + k * k)

    def moments(self) -> tuple[float, float]:
        """Mean and variance of Y."""
        parts = [p.moment(-math.inf, math.inf, 0.0) for p in self.pieces]
        mean = sum(p[1] for p in parts)
        return mean, sum(p[2] for p in parts) - mean * mean

    def pdf(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """Density at y (without the point mass at zero)."""
        out = np.zeros_like(y)
        for p in self.pieces:
            inside = (y >= p.low) & (y < p.high)
            out[inside] = p.value * np.exp(p.rate * (y[inside] - p.anchor))
        return out

    def cdf(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(Y ≤ y), elementwise."""
        out = np.where(y >= 0, self.zero_mass, 0.0)
        for p in self.pieces:
            end = np.clip(y, p.low, p.high)
            if math.isfinite(p.low):
                start = p.value * math.exp(p.rate * (p.low - p.anchor))
                out += start * np.expm1(p.rate * (end - p.low)) / p.rate
            else:
                out += p.value * np.exp(p.rate * (end - p.anchor)) / p.rate
        return out

    def quantization_error(self, levels: Sequence[float], thresholds: Sequence[float]) -> float:
        """E[(Y − Q(Y))²], with the clipping error of both tails, which belong to the outer cells.

        Source: Cohen et al. 2021, total error e_tot(c_min, c_max), eqs. (9)–(12), for arbitrary cells.
        """
        edges = [-math.inf, *thresholds, math.inf]
        pieces = self.pieces
        total = sum(
            p.moment(a, b, level)[2] for level, a, b in zip(levels, edges[:-1], edges[1:], strict=True) for p in pieces
        )
        at_zero = levels[sum(t <= 0 for t in thresholds)]
        return total + self.zero_mass * at_zero * at_zero


def fit_density(mean: float, variance: float, slope: float, kappa: float = KAPPA) -> FeatureDensity | None:
    """The (λ, μ) whose Y has this mean and variance, or None if there is none.

    The shape of Y depends on λμ only, and λ scales it. So mean/√variance is a function of t = λμ alone: find its root
    in a bracket, then λ from the variance. Source: Cohen et al. 2021 §III-B, solved there for s = 0.1 and s = 0.
    """
    if not (variance > 0 and math.isfinite(mean)):
        return None
    target = mean / math.sqrt(variance)

    def ratio(t: float) -> float:
        m, v = FeatureDensity(rate=1.0, location=t, slope=slope, kappa=kappa).moments()
        return m / math.sqrt(v) - target if v > 0 else -target

    low, high = -30.0, 30.0
    if ratio(low) * ratio(high) > 0:
        return None
    t = float(brentq(ratio, low, high, xtol=1e-14, rtol=1e-14))
    _, v = FeatureDensity(rate=1.0, location=t, slope=slope, kappa=kappa).moments()
    lam = math.sqrt(v / variance)
    return FeatureDensity(rate=lam, location=t / lam, slope=slope, kappa=kappa)
