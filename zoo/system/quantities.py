"""How a quantity is written, and how a text is cleaned: the one place that says "8.1 MB"; for pages and terminals alike."""

from __future__ import annotations

import math
import re

DASH = "–"  # what stands where nothing was measured
PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
# Everything a terminal or an HTML parser might obey instead of showing: C0 and C1 controls, bidirectional overrides.
PLURAL = re.compile("(?<=ss|sh|ch)es$|(?<=x)es$|s$")
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def clean(text: object) -> str:
    """Return `text` as a string that can be shown and encoded: no control characters, no lone surrogates."""
    return UNPRINTABLE.sub("", str(text)).encode("utf-8", "replace").decode()


def shorten(text: str, length: int) -> str:
    """Cut `text` to `length` characters on one line, with an ellipsis where something is missing."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: max(length - 1, 1)].rstrip() + "…"


def finite(value: object) -> float | None:
    """Return `value` as a float, or None where it is no measurement: missing, not a number, infinite, absurd."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e24 < value < 1e24:
        return None
    return float(value) if abs(value) > 1e-24 else 0.0


def is_bytes(unit: str) -> bool:
    """Say whether `unit` counts bytes."""
    return unit in {"bytes", "B"}


def quantity(value: float | None, unit: str = "") -> str:
    """Write `value` to three or four digits: ``8.12 MB``, ``3.44 M``, ``1.2 min``, ``71.2 %``, ``1.312``."""
    if value is None:
        return DASH
    if unit == "s":
        return seconds(value)
    divisor, suffix = _scale(value, unit)
    text = _digits(value / divisor, _decimals(value / divisor, wanted=3 if divisor > 1 else 4))
    return (text if divisor > 1 or "e" in text else strip_zeros(text)) + suffix


def measured(value: float | None, low: float | None, high: float | None, unit: str = "") -> tuple[str, str]:
    """Write a value and its interval with matching decimals: ``("1.312", "±0.020")``, or a range when lopsided.

    An interval stands alone on its line, so it has the value's prefix too: ``("15.1 k", "±2.4 k")``; per cents go without.
    """
    if value is None or low is None or high is None or high <= low or unit == "s":
        return quantity(value, unit), ""
    divisor, suffix = _scale(value, unit)
    half = (high - low) / 2 / divisor
    decimals = min(max(1 - math.floor(math.log10(half)), 0), 6)
    text, behind = _digits(value / divisor, decimals) + suffix, "" if unit == "%" else suffix
    if abs((high + low) / 2 - value) <= 0.25 * (high - low) / 2:
        return text, f"±{_digits(half, decimals)}{behind}"
    if max(abs(low), abs(high)) >= 1000 * divisor > 1000 or 0 < abs(low) / divisor < 0.5 * 10**-decimals:
        return text, f"{quantity(low, unit)} to {quantity(high, unit)}"
    return text, f"{_digits(low / divisor, decimals)} to {_digits(high / divisor, decimals)}{behind}"


def seconds(value: float | None) -> str:
    """Write a duration short, as people say it: ``40 ms``, ``0.42 s``, ``12 s``, ``3.1 min``, ``2.2 h``."""
    if value is None:
        return DASH
    if value < 0.0995:
        return f"{value * 1000:.3g} ms"
    if value < 59.5:
        return f"{value:.2g} s" if value < 9.95 else f"{value:.0f} s"
    if value < 59.5 * 60:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h" if value < 99.5 * 3600 else f"{value / 86400:.1f} days"


def times(value: float | None, base: float | None) -> str:
    """Write `value` as a multiple of `base`: ``×0.42``; empty where that says nothing."""
    if value is None or base is None or base <= 0 or value < 0:
        return ""
    ratio = value / base
    return f"×{ratio:.2f}" if 0.095 <= ratio < 9.95 else f"×{ratio:.2g}" if ratio < 999 else f"×{quantity(ratio)}"


def percent(value: float | None, base: float | None) -> str:
    """Write the change from `base` to `value`: ``+5 %``, ``−0.3 %``; empty where that says nothing."""
    if value is None or base is None or base <= 0:
        return ""
    share = (value - base) / base * 100
    if abs(share) < 0.05:
        return "±0 %"
    sign = "+" if share > 0 else "−"
    size = f"{abs(share):.1f}" if abs(share) < 9.95 else quantity(round(abs(share)))
    return f"{sign}{strip_zeros(size)} %"


def points(value: float | None, base: float | None) -> str:
    """Write the change of a percentage in percentage points: ``−1.2 points``; empty where that says nothing."""
    if value is None or base is None:
        return ""
    change = abs(value - base)
    text = quantity(round(change, 1) if change >= 0.05 else change)
    return f"{'−' if value < base else '+' if value > base else '±'}{text} points"


def power(value: float) -> str:
    """Write a very small number short: ``3e−4``."""
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{strip_zeros(digits)}e{int(exponent)}".replace("-", "−") if value else "0"


def strip_zeros(text: str) -> str:
    """Drop the zeros a number does not need: ``2.00 MB`` is ``2 MB``."""
    number, space, suffix = text.partition(" ")
    return (number.rstrip("0").rstrip(".") if "." in number else number) + space + suffix


def _scale(value: float, unit: str) -> tuple[float, str]:
    """Return what to divide by and what to write behind: prefix and unit. 9500 tokens stay 9500, bytes are 9.5 kB."""
    if unit == "%":
        return 1.0, " %"
    name, smallest = ("B", 1e3) if is_bytes(unit) else ("", 1e4)
    for divisor, prefix in PREFIXES:
        if abs(value) >= max(divisor, smallest) * 0.9995:
            return divisor, f" {prefix}{name}"
    return 1.0, f" {name}" if name else ""


def _decimals(value: float, *, wanted: int) -> int:
    """Return how many decimals make `value` as many digits long as wanted."""
    if value == 0:
        return 0
    return min(max(wanted - 1 - math.floor(math.log10(abs(value))), 0), 6)


def _digits(value: float, decimals: int) -> str:
    """Write `value` with a proper minus sign, falling back to exponents for the very small."""
    if value and abs(value) < 0.5 * 10**-decimals:
        return power(value)
    text = f"{value:.{decimals}f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def count(number: int) -> str:
    """Write a number of parameters as the field does: 3221952 -> "3.22M", 7e9 -> "7B"; 0 -> "unknown"."""
    return strip_zeros(quantity(number)).replace(" ", "").replace("G", "B") if number else "unknown"


def counted(number: int, of: str) -> str:
    """Write how many there are of something, given its plural: 1, "records" -> "1 record"; 1, "passes" -> "1 pass"."""
    return f"{number:,} {PLURAL.sub('', of) if number == 1 else of}".strip()


def size(number: float) -> str:
    """Write a number of bytes shortly, in powers of 1000 as files are sold: 12582912 -> "12.6 MB"."""
    return strip_zeros(quantity(number, "bytes"))
