"""Numbers and axes as Grafana shows them: units, and ticks at round figures."""

from __future__ import annotations

import math
import time

#: What a figure of at least this size is divided by, and the name after it.
_SCALES = {
    "short": ((1e9, " Bil"), (1e6, " Mil"), (1e3, " K"), (1, "")),
    "ops": ((1e6, "M ops/s"), (1e3, "K ops/s"), (1, " ops/s")),
    "Bps": ((1e9, " GB/s"), (1e6, " MB/s"), (1e3, " kB/s"), (1, " B/s")),
    "s": ((86400, " days"), (3600, " hours"), (60, " mins"), (1, " s")),
}
#: Round steps of a tick, in units of the scale: time goes by 60.
_STEPS = {60: (0.5, 1, 2, 5, 10, 15, 20, 30, 60), 10: (1, 2, 2.5, 5, 10)}


def shown(value: float, unit: str) -> str:
    """Return a figure with its unit; of less than 100, three digits."""
    scales = _SCALES[unit]
    divisor, name = next((one for one in scales if abs(value) >= one[0]), scales[-1])
    scaled = value / divisor
    digits = 0 if abs(scaled) >= 100 else 1 if abs(scaled) >= 10 else 2
    figure = f"{scaled:.{digits}f}"
    return (figure.rstrip("0").rstrip(".") if digits else figure) + name


def ticks(highest: float, unit: str, at_most: int = 5) -> list[float]:
    """Return round figures from 0 on, of which the last is not below the highest."""
    if highest <= 0:
        return [0.0, 1.0]
    rough = highest / at_most
    if unit == "s" and highest >= 1:
        scale, steps = next(one for one, _ in _SCALES["s"] if highest >= one), _STEPS[60]
    else:
        scale, steps = 10 ** math.floor(math.log10(rough)), _STEPS[10]
    wide = [scale * step for step in steps if scale * step >= rough * (1 - 1e-9)]
    step = wide[0] if wide else rough
    return [number * step for number in range(math.ceil(highest / step - 1e-9) + 1)]


def times(begin_s: float, end_s: float, at_most: int = 6) -> list[float]:
    """Return round times of the clock within these two."""
    rough = (end_s - begin_s) / at_most
    rounds = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    step = next((one for one in rounds if one >= rough), rounds[-1])
    first = math.ceil(begin_s / step) * step
    return [float(at) for at in range(first, math.floor(end_s) + 1, step)]


def clock(at_s: float, seconds: bool = False) -> str:
    """Return a time as a clock in UTC shows it."""
    return time.strftime("%H:%M:%S" if seconds else "%H:%M", time.gmtime(at_s))
