"""Numbers as people read them. Anything that is not a finite number reads "–"."""

from __future__ import annotations

from posttrain.evaluate.metrics import number

NONE = "–"


def decimal(value: object, digits: int = 3) -> str:
    found = number(value)
    return NONE if found is None else f"{found:.{digits}f}"


def percent(value: object) -> str:
    """45%; with one decimal near 0% and 100%, where a point is much: 6.2%, 99.6%."""
    found = number(value)
    if found is None:
        return NONE
    return f"{found:.1%}" if 0 < abs(found) < 0.0995 or 0.9905 <= found < 1 else f"{found:.0%}"


def percent1(value: object) -> str:
    """Always with one decimal: 45.3%"""
    found = number(value)
    return NONE if found is None else f"{100 * found:.1f}%"


def share(value: object) -> str:
    """A tick of an axis in per cent: 2.5%, 40%."""
    found = number(value)
    return NONE if found is None else f"{100 * found:.3g}%"


def compact(value: object) -> str:
    """Three significant digits, no trailing zeros, k for thousands: 0.412, 48.3, 3.2k, 2e-05."""
    found = number(value)
    if found is None:
        return NONE
    if abs(found) >= 10_000:
        return f"{found / 1000:.3g}k" if abs(found) < 1e6 else f"{found:.2e}"
    return f"{found:.0f}" if abs(found) >= 1000 else f"{found:.3g}"


def duration(seconds: float) -> str:
    """42 s, 7 min, 1 h 05 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
