"""Recursive least squares with forgetting, for a latency that is a sum of positive parts.

A latency is ``y = c0 x0 + c1 x1 + c2 x2 + own``, with features ``x`` that are known beforehand
(bytes, contention) and coefficients that drift. Noise and drift are relative (a network becomes
twice as slow, not 40 ms slower), so the filter works on the logarithms of both sides: coefficients
stay positive, and large and small jobs weigh alike.

Source: the Kalman form of recursive least squares with forgetting (Ljung and Gunnarsson 1990,
"Adaptation and tracking in system identification"), linearised at each step (the extended Kalman
filter). A single outlier's weight falls with the square of its distance (a redescending estimator:
Huber and Ronchetti 2009, "Robust statistics"). A coefficient of one model alone (`Own`) is kept
apart from the shared ones, without covariance between them (the decoupled extended Kalman filter,
Puskorius and Feldkamp 1991).

What is not measured for a while returns to where it usually is (an Ornstein-Uhlenbeck process,
sampled at each look), and is as uncertain as it usually varies. So one bad minute is no prejudice.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from policies.lognormal import above

Features = tuple[float, float, float]

# An innovation this many standard deviations off is an outlier; a second one in the same direction
# that began after it is a change.
OUTLIER = 3.0
# So many outcomes in between, and an outlier is over.
CALM = 3
# How fast the noise is learned, and its bounds, as a relative standard deviation.
NOISE_WEIGHT = 0.05
NOISE_FIRST = 0.2
NOISE_LEAST = 0.05
# The most that one outcome may move a coefficient, as a logarithm.
STEP = 1.5
# A change makes coefficients uncertain by this share of its own size, up to this size.
CHANGE_SHARE = 1.0
CHANGE_MOST = 2.0
# Nothing takes less: keeps logarithms finite.
LEAST_S = 1e-7
# A coefficient that is not measured is halfway to its usual value after 0.7 of this time; the usual
# is the mean of about the latest so many outcomes.
RETURNS_S = 60.0
USUAL_OF = 30
# After a change no more than so many outcomes' worth of it counts.
AFTER_CHANGE = 2
# Reckoned anew after so long at the earliest.
LOOK_S = 0.25
# A latency of which only a lower bound is known is taken for at most so many times that.
LONGER_MOST = 2.0
# Beyond so many standard deviations the inverse Mills ratio is about its argument.
MILLS_FROM = 5.0


@dataclass(frozen=True, slots=True)
class Prior:
    """What is assumed of a coefficient before anything is measured, in relative terms."""

    value: float  # its median
    spread: float  # standard deviation of its logarithm; uncertainty never grows beyond
    drift: float  # standard deviation of its logarithm after one second
    jump: float = 1.0  # its part in a sudden change


class Own:
    """A coefficient of one model alone: what is added to the shared sum."""

    __slots__ = ("log", "prior", "seen_at", "value", "variance")

    def __init__(self, prior: Prior, now_s: float) -> None:
        """Begin with what is assumed, at monotonic second `now_s`."""
        self.prior = prior
        self.log = math.log(prior.value)
        self.value = prior.value
        self.variance = prior.spread**2
        self.seen_at = now_s

    def variance_at(self, now_s: float) -> float:
        """Its logarithm's variance, grown with time."""
        prior = self.prior
        grown = self.variance + prior.drift**2 * max(now_s - self.seen_at, 0.0)
        return min(grown, prior.spread**2)

    def move(self, step: float) -> None:
        """Add to its logarithm."""
        self.log += min(max(step, -STEP), STEP)
        self.value = math.exp(self.log)


class Regression:
    """Three shared coefficients, their covariance, and the noise around their sum.

    Example:
        >>> prior = Prior(value=0.05, spread=1.0, drift=0.01)
        >>> per_byte = Prior(value=1e-6, spread=2.0, drift=0.1)
        >>> line = Regression((prior, per_byte, per_byte), now_s=0.0)
        >>> for second in range(20):
        ...     line.learn((1.0, 1e5, 0.0), None, 0.25, float(second))
        >>> round(line.predict((1.0, 1e5, 0.0), None, 20.0)[0], 3)
        0.25
    """

    __slots__ = (
        "_bounds",
        "_calm",
        "_growth",
        "_logs",
        "_noise",
        "_outlier_at",
        "_p",
        "_priors",
        "_run",
        "_seen_at",
        "_usual",
        "_usual_of",
        "values",
    )

    def __init__(self, priors: tuple[Prior, Prior, Prior], now_s: float) -> None:
        """Begin with what is assumed, at monotonic second `now_s`."""
        self._priors = priors
        self._growth = [prior.drift**2 for prior in priors]  # of variances, per second
        self._bounds = [prior.spread**2 for prior in priors]  # of variances
        self._logs = [math.log(prior.value) for prior in priors]
        self.values = [prior.value for prior in priors]  # the coefficients
        # The covariance of the logarithms: 00, 11, 22, 01, 02, 12.
        self._p = [*self._bounds, 0.0, 0.0, 0.0]
        self._noise = [NOISE_FIRST**2, NOISE_FIRST**2]  # calm, and disturbed
        self._run = 0  # outliers in a row, signed
        self._calm = 0  # outcomes since the last outlier
        self._outlier_at = -math.inf
        self._seen_at = now_s
        self._usual = list(self._logs)
        self._usual_of = 0  # outcomes

    def predict(
        self, x: Features, own: Own | None, now_s: float, *, disturbed: bool = False
    ) -> tuple[float, float]:
        """Predict a latency.

        Args:
            x: The features.
            own: The model's own coefficient, if it has one.
            now_s: Monotonic seconds.
            disturbed: Whether the conditions make it noisier; that noise is learned apart.

        Returns:
            Its median, in seconds, and the standard deviation of its logarithm: noise, and what is
            not known of the coefficients.
        """
        self._return(now_s)
        x0, x1, x2 = x
        v0, v1, v2 = self.values
        s0, s1, s2 = v0 * x0, v1 * x1, v2 * x2
        median = s0 + s1 + s2
        variance = 0.0
        if own is not None:
            median += own.value
            variance = own.value * own.value * own.variance_at(now_s)
        if median <= LEAST_S:
            return LEAST_S, math.sqrt(self._noise[disturbed])
        p00, p11, p22, p01, p02, p12 = self._grown(now_s)
        variance += s0 * s0 * p00
        if s1:
            variance += s1 * (s1 * p11 + 2.0 * s0 * p01)
        if s2:
            variance += s2 * (s2 * p22 + 2.0 * (s0 * p02 + s1 * p12))
        return median, math.sqrt(max(variance, 0.0) / (median * median) + self._noise[disturbed])

    def learn(
        self,
        x: Features,
        own: Own | None,
        latency_s: float,
        now_s: float,
        *,
        disturbed: bool = False,
    ) -> None:
        """Take in one measured latency.

        Args:
            x: The features it was predicted from.
            own: The model's own coefficient, if it has one.
            latency_s: What was measured.
            now_s: Monotonic seconds.
            disturbed: As for `predict`.
        """
        noise = self._noise[disturbed]
        median, share, own_share = self._expect(x, own, now_s)
        off = math.log(max(latency_s, LEAST_S) / median)
        gains, own_gain, explained = self._gains(share, own, own_share)
        usual = total = explained + noise
        beyond = abs(off) / math.sqrt(total) / OUTLIER
        if beyond <= 1.0:
            # Jobs too small to notice a change come between those that do.
            self._calm += 1
            if self._calm >= CALM:
                self._run = 0
        elif self._run * off > 0 and now_s - latency_s >= self._outlier_at:
            # Not an outlier but a change: what was known counts for less.
            self._run += 1 if off > 0 else -1
            self._calm = 0
            self._loosen(share, own, own_share, min(abs(off), CHANGE_MOST) * CHANGE_SHARE)
            self._usual_of = min(self._usual_of, AFTER_CHANGE)
            gains, own_gain, explained = self._gains(share, own, own_share)
            total = explained + noise
        else:
            # What began before an outlier ended met the same hindrance, and is no second one.
            self._run = 1 if off > 0 else -1
            self._calm = 0
            self._outlier_at = now_s
            total *= beyond * beyond
        self._move(gains, off, total)
        if own is not None:
            own.move(own_gain / total * off)
            own.variance -= own_gain * own_gain / total
        self._note_usual()
        # Where the coefficients are unsure, an outcome tells little of the noise.
        weight = NOISE_WEIGHT * noise / usual
        seen = min(off * off, OUTLIER * OUTLIER * usual) - explained
        self._noise[disturbed] = max(noise + weight * (seen - noise), NOISE_LEAST * NOISE_LEAST)

    def learn_longer(
        self, x: Features, own: Own | None, at_least_s: float, now_s: float, weight: float = 1.0
    ) -> None:
        """Take in a latency of which a lower bound is known: nobody waited for its end.

        Its logarithm is a normal variable cut off below, whose mean and variance are matched (the
        Tobit Kalman filter, Allik, Miller, Piovoso and Zurakowski 2016).

        Args:
            x: The features it was predicted from.
            own: The model's own coefficient, if it has one.
            at_least_s: How long it was waited for.
            now_s: Monotonic seconds.
            weight: How probably it was slow at all: it counts so much. What may as well be a
                failure tells less of the latency (probabilistic data association, Bar-Shalom and
                Tse 1975).
        """
        median, share, own_share = self._expect(x, own, now_s)
        gains, own_gain, explained = self._gains(share, own, own_share)
        total = explained + self._noise[0]
        spread = math.sqrt(total)
        beyond = math.log(max(at_least_s, LEAST_S) / median)
        z = beyond / spread
        mills = _mills(z)
        off = min(spread * mills, beyond + math.log(LONGER_MOST))
        if off <= 0.0:
            return
        told = weight * mills * (mills - z)  # the share of the variance that is gone
        off *= weight
        self._move(gains, off, total, told)
        if own is not None:
            own.move(own_gain / total * off)
            own.variance -= own_gain * own_gain / total * told

    def spreads(self, now_s: float) -> tuple[float, float, float]:
        """Give the standard deviations of the coefficients' logarithms."""
        p00, p11, p22, *_ = self._grown(now_s)
        return math.sqrt(p00), math.sqrt(p11), math.sqrt(p22)

    def widen(self) -> None:
        """Forget how sure the coefficients are, for the conditions have changed; keep them."""
        self._p = [*self._bounds, 0.0, 0.0, 0.0]

    def dump(self, now_s: float) -> dict[str, Any]:
        """Give what was learned, as plain JSON types."""
        self._return(now_s)
        return {
            "logs": list(self._logs),
            "p": list(self._grown(now_s)),
            "noise": list(self._noise),
            "usual": list(self._usual),
            "usual_of": self._usual_of,
        }

    def load(self, state: dict[str, Any], age_s: float) -> None:
        """Take up what `dump` gave, `age_s` seconds ago.

        Raises:
            KeyError, TypeError, ValueError: It is not of that form.
        """
        logs = [_finite(value) for value in state["logs"]]
        p = [_finite(value) for value in state["p"]]
        noise = [_finite(value) for value in state["noise"]]
        usual = [_finite(value) for value in state.get("usual", logs)]
        usual_of = min(int(state.get("usual_of", 0)), USUAL_OF)
        sizes = len(logs), len(p), len(noise), len(usual)
        if sizes != (3, 6, 2, 3) or min(*p[:3], *noise, usual_of) < 0:
            raise ValueError("no coefficients of a regression")
        self._logs = logs
        self.values = [math.exp(log) for log in logs]
        self._p = p
        self._noise = noise
        self._usual = usual
        self._usual_of = usual_of
        # The device may be elsewhere by now, so nothing is usual any more: it has just aged.
        now_s = self._seen_at
        self._seen_at -= age_s
        self._p = list(self._grown(now_s))
        self._seen_at = now_s

    def _return(self, now_s: float) -> None:
        """Have the coefficients return to where they usually are, by the time since the last."""
        age_s = now_s - self._seen_at
        if age_s < LOOK_S or not self._usual_of:
            return
        kept = math.exp(-age_s / RETURNS_S)
        squared = kept * kept
        p = self._p
        for place in (0, 1, 2):
            usual = self._usual[place]
            log = self._logs[place] = usual + (self._logs[place] - usual) * kept
            self.values[place] = math.exp(log)
            varies = min(self._growth[place] * RETURNS_S / 2, self._bounds[place])
            # What was never measured stays as unsure as it was.
            p[place] = max(p[place], varies - (varies - p[place]) * squared)
            p[place + 3] *= squared
        self._seen_at = now_s

    def _note_usual(self) -> None:
        self._usual_of = min(self._usual_of + 1, USUAL_OF)
        usual, logs = self._usual, self._logs
        for place in (0, 1, 2):
            usual[place] += (logs[place] - usual[place]) / self._usual_of

    def _expect(self, x: Features, own: Own | None, now_s: float) -> tuple[float, Features, float]:
        """Go on to this second; give the median, and each part's share of it, `own`'s last."""
        self._return(now_s)
        self._p = self._grown(now_s)
        self._seen_at = max(now_s, self._seen_at)
        v0, v1, v2 = self.values
        s0, s1, s2 = v0 * x[0], v1 * x[1], v2 * x[2]
        own_s = 0.0
        if own is not None:
            own_s = own.value
            own.variance = own.variance_at(now_s)
            own.seen_at = max(now_s, own.seen_at)
        median = max(s0 + s1 + s2 + own_s, LEAST_S)
        return median, (s0 / median, s1 / median, s2 / median), own_s / median

    def _grown(self, now_s: float) -> list[float]:
        """Give the covariance as it is now: what was learned loses its certainty with age."""
        age_s = now_s - self._seen_at
        if age_s <= 0.0:
            return self._p
        p00, p11, p22, p01, p02, p12 = self._p
        g0, g1, g2 = self._growth
        b0, b1, b2 = self._bounds
        p00 += g0 * age_s
        p11 += g1 * age_s
        p22 += g2 * age_s
        return [
            min(b0, p00),
            min(b1, p11),
            min(b2, p22),
            p01,
            p02,
            p12,
        ]

    def _gains(
        self, share: Features, own: Own | None, own_share: float
    ) -> tuple[Features, float, float]:
        """Give the covariance times the shares, and the variance of the sum."""
        p00, p11, p22, p01, p02, p12 = self._p
        s0, s1, s2 = share
        g0 = p00 * s0 + p01 * s1 + p02 * s2
        g1 = p01 * s0 + p11 * s1 + p12 * s2
        g2 = p02 * s0 + p12 * s1 + p22 * s2
        own_gain = 0.0 if own is None else own.variance * own_share
        explained = g0 * s0 + g1 * s1 + g2 * s2 + own_gain * own_share
        return (g0, g1, g2), own_gain, max(explained, 0.0)

    def _move(self, gains: Features, off: float, total: float, told: float = 1.0) -> None:
        """Move the coefficients by an innovation `off`, which tells that share of the variance."""
        by = off / total
        logs, values = self._logs, self.values
        bounded = False
        for place in (0, 1, 2):
            step = gains[place] * by
            if step:
                if not -STEP <= step <= STEP:
                    bounded = True
                    step = math.copysign(STEP, step)
                logs[place] += step
                values[place] = math.exp(logs[place])
        if bounded:
            # There is farther to go, so nothing has become more certain.
            return
        g0, g1, g2 = gains
        less = told / total
        p00, p11, p22, p01, p02, p12 = self._p
        self._p = [
            max(p00 - g0 * g0 * less, 0.0),
            max(p11 - g1 * g1 * less, 0.0),
            max(p22 - g2 * g2 * less, 0.0),
            p01 - g0 * g1 * less,
            p02 - g0 * g2 * less,
            p12 - g1 * g2 * less,
        ]

    def _loosen(self, share: Features, own: Own | None, own_share: float, by: float) -> None:
        p = list(self._p)
        for place, prior in enumerate(self._priors):
            if share[place]:
                most = max(prior.spread, 1.0) ** 2
                p[place] = min(p[place] + (by * prior.jump) ** 2, most)
        self._p = p
        if own is not None and own_share:
            own.variance = min(
                own.variance + (by * own.prior.jump) ** 2, max(own.prior.spread, 1.0) ** 2
            )


def _mills(z: float) -> float:
    """Give the mean of a standard normal variable above z."""
    if z > MILLS_FROM:
        return z + 1.0 / z
    return math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) / above(z)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number) or abs(number) > 1e3:  # noqa: PLR2004 - logarithms and variances
        raise ValueError(f"{value!r} is no coefficient")
    return number
