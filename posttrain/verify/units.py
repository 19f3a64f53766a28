"""Units by their dimension and size, so that 5 km is 5000 m, and km/h is kilometers per hour.

A unit that is not in the table ("apples") is a name: it equals itself, its plural and a longer name ("red
apples") only.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

# dimension: names of a unit = its size in the first one's
_TABLE = """
length: m meter metre = 1; mm millimeter millimetre = 1/1000; cm centimeter centimetre = 1/100
length: dm decimeter decimetre = 1/10; km kilometer kilometre = 1000; in inch inche = 127/5000
length: ft foot feet = 381/1250; yd yard = 1143/1250; mi mile = 201168/125
mass: g gram gramme = 1; mg milligram = 1/1000; kg kilogram kilo = 1000; tonne = 1000000
mass: lb lbs pound = 45359237/100000; oz ounce = 45359237/1600000
time: s sec second = 1; ms millisecond = 1/1000; min minute = 60; h hr hour = 3600; day = 86400; week = 604800
volume: L l liter litre = 1; mL ml milliliter millilitre = 1/1000; cL cl centiliter = 1/100
angle: ° deg degree = 1
dollar: dollar usd = 1; cent ¢ = 1/100
energy: J joule = 1; kJ kilojoule = 1000
power: W watt = 1; kW kilowatt = 1000
force: N newton = 1
voltage: V volt = 1
"""
_COMPOUND = {"mph": "mi/h", "kph": "km/h", "kmh": "km/h", "kmph": "km/h", "fps": "ft/s"}
_COMPOUND |= {
    f"{start}{letter}": name
    for letter, name in (("c", "celsius"), ("f", "fahrenheit"))
    for start in ("°", "° ")
}
_COMPOUND |= {f"degree{s} {name}": name for name in ("celsius", "fahrenheit") for s in ("", "s")}
_FACTOR = re.compile(r"([^\W\d_]+|°|¢)\.?(?:\^?\{?([23²³])\}?)?")


def _sizes() -> dict[str, tuple[str, Fraction]]:
    found = {}
    for line in _TABLE.strip().splitlines():
        dimension, _, entries = line.partition(": ")
        for entry in entries.split("; "):
            names, _, size = entry.partition(" = ")
            found |= {name: (dimension, Fraction(size)) for name in names.split()}
    return found


_SIZES = _sizes()


@lru_cache(maxsize=1024)
def read_unit(text: str) -> tuple[str, Fraction]:
    """(name, size) of a unit: ("length", 1000) for "km", ("apple", 1) for "apples".

    Units of one dimension share their name, whatever is written: "length/time" for m/s and for mph.
    """
    text = _COMPOUND.get(text.strip().lower().rstrip("."), text.strip())
    text = re.sub(r"\b(?:square|sq\.?)\s+([^\W\d_]+)", r"\1^2", text, flags=re.IGNORECASE)
    text = re.sub(r"\bcubic\s+([^\W\d_]+)", r"\1^3", text, flags=re.IGNORECASE)
    text = re.sub(r"\s*/\s*|\s+per\s+", "/", text)
    powers: dict[str, int] = {}
    size = Fraction(1)
    for position, part in enumerate(text.split("/")):
        match = _FACTOR.fullmatch(part)
        known = _lookup(match[1]) if match else None
        if match is None or known is None:
            return _name(text), Fraction(1)
        power = {"2": 2, "²": 2, "3": 3, "³": 3}.get(match[2], 1) * (-1 if position else 1)
        powers[known[0]] = powers.get(known[0], 0) + power
        size *= known[1] ** power
    return " ".join(f"{name}^{power}" for name, power in sorted(powers.items())), size


def _lookup(word: str) -> tuple[str, Fraction] | None:
    for name in (word, word.lower(), word.lower().removesuffix("s")):
        if name in _SIZES and (name == word or len(word) > 1):
            return _SIZES[name]
    return None


def _name(text: str) -> str:
    words = re.findall(r"[^\W\d_]+", text.lower())
    return " ".join(word.removesuffix("s") for word in words) or text


def same_name(ours: str, theirs: str) -> bool:
    """Whether one unit's name is the other's, or says more of the same: "red apple" for "apple"."""
    return ours == theirs or ("^" not in theirs and set(theirs.split()) <= set(ours.split()))
