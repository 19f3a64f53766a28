"""Find worked steps in a text - "3 + 4 = 7", "12*2 = $24", "5 × 6 = 30" - and check them by exact arithmetic.

A step is an expression with at least one operation that does something, an equals sign, and one number or
fraction, on either side. "7 = 7", "7 + 0 = 7" and "7 * 1 = 7" are no steps. An equation written again is the
same step, its terms in another order or not. Text goes through our own tokenizer and parser, with a bound on
every size; nothing is evaluated.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice

from posttrain.verify.extract import working

_LONGEST = 100_000  # characters of a text that are read
_EQUATIONS = 200  # equals signs looked at in one text
_SPAN = 200  # characters looked at before an equals sign
_TOKENS = 40  # tokens in an expression
_EXPONENT = 16  # largest power
_BITS = 256  # largest numerator or denominator on the way

_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d{1,15})(?:\.\d{1,15})?(?![.,]?\d|[eE]\d)%?"
_TOKEN = re.compile(rf"\s*({_NUMBER}|\*\*|[-+*/^()])")
_EQUALS = re.compile(r"(?<![=<>!:~])=(?!=)")
_SKIP = re.compile(r"\s*(?:[\d.,]+|.)", re.DOTALL)
_OPERATORS = ("+", "-", "*", "/", "^", "**")
_SPELLING = [
    (re.compile(r"\\[dt]?frac\s*\{(\d{1,15})\}\s*\{(\d{1,15})\}"), r"(\1/\2)"),
    (re.compile(r"\\(?:times|cdot)(?![A-Za-z])|[×∗⋅·]"), "*"),
    (re.compile(r"\\div(?![A-Za-z])|[÷∕]"), "/"),
    (re.compile(r"[−–]"), "-"),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\\?[$€£]|\\[()\[\],;:! ]|\\left|\\right"), ""),
    (re.compile(r"(?<=[\d)%])( ?)[xX]( ?)(?=[\d(])"), r"\1*\2"),
    # Units between a number and what follows: "3 apples + 4 apples = 7". Two words at most.
    (re.compile(r"(?<=[\d%]) {1,2}[^\W\d_]{2,20}(?: [^\W\d_]{2,20})?(?= {0,2}[-+*/=)])"), ""),
]


@dataclass(frozen=True)
class Equation:
    """One step as written: its operands in order, the value they come to, and the value stated.

    Example: "3 + 4 = 8" -> Equation(operands=(3, 4), value=7, stated=8, holds=False)
    """

    operands: tuple[Fraction, ...]
    value: Fraction
    stated: Fraction
    holds: bool


@dataclass
class _Expression:
    """A parsed expression: its value, its numbers, and its operations that change something, as signs."""

    value: Fraction
    operands: list[Fraction]
    signs: list[str]

    @property
    def is_number(self) -> bool:
        return self.signs in ([], ["/"]) and len(self.operands) == 1 + len(self.signs)


class _NotArithmetic(Exception):
    """What stands there is no arithmetic, or is larger than a worked step ever is."""


def has_step(text: str) -> bool:
    """Whether the text shows at least one step that holds before its final answer."""
    return any(equation.holds for equation in equations(working(text)))


def equations(text: str) -> list[Equation]:
    """The distinct steps in a text, in the order of their first appearance."""
    steps: dict[tuple, Equation] = {}
    for expression, stated, places in _candidates(text):
        # 0 and 1 as padding, and the order of the terms, do not make another step of it.
        substance = tuple(sorted(operand for operand in expression.operands if operand not in (0, 1)))
        key = (substance, tuple(sorted(expression.signs)), stated)
        if key not in steps:
            holds = _holds(expression, stated, places)
            steps[key] = Equation(tuple(expression.operands), expression.value, stated, holds)
    return list(steps.values())


def numbers(text: str) -> set[Fraction]:
    """Every number written in a text, without its sign."""
    found = set()
    for match in re.finditer(rf"(?<![\d.])(?<!\d,){_NUMBER}", _spell(text)):
        found.add(_number(match[0]))
    return found


def _holds(expression: _Expression, stated: Fraction, places: int) -> bool:
    if expression.value == stated:
        return True
    # A quotient that does not come out may be rounded to the decimals written: 10 / 3 = 3.33
    return (
        "/" in expression.signs
        and places >= 2
        and abs(expression.value - stated) <= Fraction(1, 2 * 10**places)
    )


def _candidates(text: str) -> Iterator[tuple[_Expression, Fraction, int]]:
    """(expression, stated number, decimals of that number) around the equals signs of a text."""
    places = ((line, match) for line in _spell(text).splitlines() for match in _EQUALS.finditer(line))
    for line, match in islice(places, _EQUATIONS):
        left, right = _before(line, match.start()), _after(line, match.end())
        if left is None or right is None:
            continue
        if left[0].signs and right[0].is_number:
            yield left[0], right[0].value, right[1]
        elif right[0].signs and left[0].is_number:
            yield right[0], left[0].value, left[1]


def _spell(text: str) -> str:
    if len(text) > _LONGEST:
        text = text[:_LONGEST].rpartition("\n")[0]  # no half numbers
    for pattern, replacement in _SPELLING:
        text = pattern.sub(replacement, text)
    return text


def _before(line: str, end: int) -> tuple[_Expression, int] | None:
    """The longest expression that ends at `end`, and the decimals of its last number."""
    text = line[max(0, end - _SPAN) : end]
    words = text.rstrip("0123456789.,+-*/^()% \t")
    run = text[len(words) :]
    tokens = _tokens(run)
    if tokens[:1] == ["**"]:
        tokens = tokens[1:]  # opening emphasis
    if not tokens or len(tokens) > _TOKENS or (not words and end > _SPAN):
        return None
    if words and words[-1].isascii() and words[-1].isalnum():
        if not run[0].isspace() or tokens[0] in _OPERATORS:
            return None  # the end of something larger: f(2) + 3, x + 3
    elif not words and tokens[0] in ("-", "+", "*") and run.lstrip()[1:2].isspace():
        tokens = tokens[1:]  # a bullet, not a sign
    for start, token in enumerate(tokens):
        if token in (*_OPERATORS, ")") and (start or token != "-"):
            continue
        if start and tokens[start - 1] in _OPERATORS:
            continue
        try:
            parser = _Parser(tokens[start:])
            expression = parser.expression()
        except _NotArithmetic:
            continue
        if parser.at_end:
            return expression, _places(tokens[-1])
    return None


def _tokens(run: str) -> list[str]:
    """The tokens at the end of a run of arithmetic characters; a comma or an overlong number begins anew."""
    tokens: list[str] = []
    position = 0
    while position < len(run):
        if match := _TOKEN.match(run, position):
            tokens.append(match[1])
            position = match.end()
        elif run[position:].isspace():
            break
        else:
            tokens = []
            position = _SKIP.match(run, position).end()  # pyright: ignore[reportOptionalMemberAccess]
    return tokens


def _after(line: str, start: int) -> tuple[_Expression, int] | None:
    """The longest expression that begins at `start`, and the decimals of its first number."""
    tokens: list[str] = []
    while len(tokens) < _TOKENS and (match := _TOKEN.match(line, start)):
        tokens.append(match[1])
        start = match.end()
    try:
        return _Parser(tokens).expression(), _places(
            next((token for token in tokens if token[0].isdigit()), "")
        )
    except _NotArithmetic:
        return None


def _places(number: str) -> int:
    return len(number.rstrip("%").partition(".")[2])


def _number(text: str) -> Fraction:
    value = Fraction(text.rstrip("%").replace(",", ""))
    return value / 100 if text.endswith("%") else value


class _Parser:
    """Recursive descent, usual precedence. Stops before what cannot go on; raises where nothing begins."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens = tokens
        self.position = 0

    def expression(self) -> _Expression:
        return self._chain(self._term, ("+", "-"))

    def _term(self) -> _Expression:
        return self._chain(self._factor, ("*", "/"))

    def _chain(self, operand: Callable[[], _Expression], signs: tuple[str, ...]) -> _Expression:
        left = operand()
        while self._peek() in signs:
            mark, sign = self.position, self.tokens[self.position]
            self.position += 1
            try:
                right = operand()
            except _NotArithmetic:
                self.position = mark  # a dash or a star after the expression, not part of it
                break
            left = _apply(left, sign, right)
        return left

    def _factor(self) -> _Expression:
        token = self._peek()
        self.position += 1
        if token == "-":
            inner = self._factor()
            return _Expression(-inner.value, inner.operands, inner.signs)
        if token == "(":
            inner = self.expression()
            if self._peek() != ")":
                raise _NotArithmetic
            self.position += 1
        elif token and token[0].isdigit():
            value = _number(token)
            inner = _Expression(value, [value], [])
        else:
            raise _NotArithmetic
        mark = self.position
        if (sign := self._peek()) in ("^", "**"):
            self.position += 1
            try:
                power = self._factor()
            except _NotArithmetic:
                if sign == "^":
                    raise
                self.position = mark  # closing emphasis: **3 + 4 = 7**
            else:
                return _apply(inner, "^", power)
        return inner

    @property
    def at_end(self) -> bool:
        return self.position >= len(self.tokens)

    def _peek(self) -> str | None:
        return self.tokens[self.position] if self.position < len(self.tokens) else None


def _apply(left: _Expression, sign: str, right: _Expression) -> _Expression:
    a, b = left.value, right.value
    if sign == "+":
        value, idle = a + b, a == 0 or b == 0
    elif sign == "-":
        value, idle = a - b, a == 0 or b == 0
    elif sign == "*":
        value, idle = a * b, a in (0, 1) or b in (0, 1)
    elif sign == "/":
        if b == 0:
            raise _NotArithmetic
        value, idle = a / b, a == 0 or b == 1
    else:
        if b.denominator != 1 or not 0 <= b <= _EXPONENT:
            raise _NotArithmetic
        value, idle = a ** int(b), a in (0, 1) or b in (0, 1)
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > _BITS:
        raise _NotArithmetic
    return _Expression(
        value, left.operands + right.operands, left.signs + right.signs + ([] if idle else [sign])
    )
