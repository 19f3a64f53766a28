"""Dates and times of day, where they can be read in one way only: 03/04/2024 is none."""

from __future__ import annotations

import calendar
import re
from datetime import date
from typing import NamedTuple

_MONTHS = {
    name.lower(): number
    for names in (calendar.month_name, calendar.month_abbr, ["", *[""] * 8, "Sept"])
    for number, name in enumerate(names)
    if name
}
_DAYS = {name.lower(): number for number, name in enumerate(calendar.day_name)}
_DAYS |= {name.lower(): number for number, name in enumerate(calendar.day_abbr)}
_MONTH = rf"(?P<month>{'|'.join(sorted(_MONTHS, key=len, reverse=True))})\.?"
_DAY = r"(?P<day>\d{1,2})(?:st|nd|rd|th)?"
_WEEKDAY = rf"(?P<weekday>{'|'.join(sorted(_DAYS, key=len, reverse=True))})\.?,? "
_DATES = [
    re.compile(rf"(?:{_WEEKDAY})?(?:the )?{form}")
    for form in (
        r"(?P<year>\d{4})[-/.](?P<number>\d{1,2})[-/.](?P<day>\d{1,2})",
        rf"{_MONTH} {_DAY}(?:,? (?P<year>\d{{4}}))?",
        rf"{_DAY}(?: of)?[ -]{_MONTH}(?:,?[ -](?P<year>\d{{4}}))?",
        r"(?P<first>\d{1,2})[-/.](?P<second>\d{1,2})[-/.](?P<year>\d{4})",
    )
]
_TIME = re.compile(
    r"(?P<hour>\d{1,2})(?::(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?)?\s*(?P<half>[ap]\.?\s?m\.?)?"
)
_BETWEEN = re.compile(r"(?<=\d)t(?=\d)|,? at |, | ")


class Moment(NamedTuple):
    """A date, a time of day, or both. (year or None, month, day); (hours, minutes, seconds).

    `clock` is False where a time of one to twelve does not say which half of the day it is in.
    """

    day: tuple[int | None, int, int] | None
    time: tuple[int, int, int] | None
    clock: bool = True


def read_moment(text: str) -> Moment | None:
    """A normalised text as a date, a time or both; None for what is neither or has two readings."""
    if len(text) > 60 or not re.search(r"\d", text):
        return None
    text = text.lower().strip()
    if (day := _day(text)) is not None:
        return Moment(day, None)
    if (time := _time(text)) is not None:
        return Moment(None, *time)
    for match in _BETWEEN.finditer(text):
        before, after = text[: match.start()], text[match.end() :]
        for first, second in ((before, after), (after, before)):
            if (day := _day(first)) is not None and (time := _time(second)) is not None:
                return Moment(day, *time)
    return None


def _day(text: str) -> tuple[int | None, int, int] | None:
    for form in _DATES:
        match = form.fullmatch(text)
        if match is None:
            continue
        part = match.groupdict()
        year = int(part["year"]) if part["year"] else None
        if "first" in part:
            first, second = int(part["first"]), int(part["second"])
            if min(first, second) == max(first, second) or max(first, second) > 12 >= min(first, second):
                month, day = sorted((first, second))
            else:
                return None  # the third of April and the fourth of March
        else:
            month = int(part["number"]) if part.get("number") else _MONTHS[part["month"]]
            day = int(part["day"])
        try:
            there = date(year or 2000, month, day)
        except ValueError:
            return None
        weekday = part["weekday"]
        if weekday and year and there.weekday() != _DAYS[weekday]:
            return None
        return year, month, day
    return None


def _time(text: str) -> tuple[tuple[int, int, int], bool] | None:
    match = _TIME.fullmatch(text)
    if match is None or not (match["minute"] or match["half"]):
        return None
    hour, minute, second = (int(match[name] or 0) for name in ("hour", "minute", "second"))
    half = (match["half"] or "")[:1]
    if hour > (12 if half else 23) or (half and hour == 0):
        return None
    if half:
        hour = hour % 12 + (12 if half == "p" else 0)
    clock = bool(half) or not 1 <= hour <= 12 or (len(match["hour"]) == 2 and hour < 10)
    return (hour, minute, second), clock


def same_moment(ours: Moment, theirs: Moment) -> bool:
    """Whether a moment is the gold one. The half of the day counts where the gold answer names it."""
    if ours.day != theirs.day or (ours.time is None) != (theirs.time is None):
        return False
    if ours.time is None or theirs.time is None or theirs.clock or not ours.clock:
        return ours.time == theirs.time
    return (ours.time[0] - theirs.time[0]) % 12 == 0 and ours.time[1:] == theirs.time[1:]
