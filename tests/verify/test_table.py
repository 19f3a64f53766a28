"""Pairs of an answer and a gold answer in the classes where verifiers fail, each with the right verdict.

RIGHT and WRONG hold what every reader would say. POLICY holds what could be said either way, with our reason.
"""

import pytest

from posttrain.verify import verify

RIGHT = {
    "percents": [
        ("50%", "50%"), ("50\\%", "50%"), ("50 percent", "50%"), ("0.5", "50%"), ("50", "50%"),
        ("12.5%", "\\frac{1}{8}"), ("$33.\\overline{3}$", "33.\\overline{3}"), ("100%", "1"),
        ("-5%", "-5%"),
    ],
    "units": [
        ("5 km", "5"), ("5 km", "5 kilometers"), ("5000 m", "5 km"), ("500 cm", "5 m"),
        ("1.5 hours", "90 minutes"), ("60 km/h", "60 kilometers per hour"), ("60 km per hour", "60 km/h"),
        ("12 square feet", "12 ft^2"), ("12 sq ft", "12 ft²"), ("12\\text{ cm}^2", "12"),
        ("5\\,\\mathrm{m/s}", "5 m/s"), ("5\\text{m}", "5 m"), ("$18", "18 dollars"), ("18 dollars", "18"),
        ("50 cents", "$0.50"), ("5 red apples", "5 apples"), ("45^\\circ", "45 degrees"), ("45°", "45"),
        ("3 lbs", "3 pounds"), ("2 hrs", "2 hours"),
    ],
    "fractions and decimals": [
        ("\\frac{3}{4}", "0.75"), ("3/4", "\\frac34"), (".75", "3/4"), ("\\dfrac{3}{4}", "\\tfrac{3}{4}"),
        ("-\\frac{1}{2}", "\\frac{-1}{2}"), ("1\\frac{1}{2}", "1.5"), ("1½", "3/2"), ("0.333333", "1/3"),
        ("0.750", "0.75"), ("\\frac{ 7 }{ 2 }", "3.5"), ("\\frac 12", "1/2"), ("2.0", "2"),
        ("\\frac{\\sqrt{3}}{3}", "\\frac{1}{\\sqrt{3}}"), ("-7/2", "-3.5"),
    ],
    "separators and signs": [
        ("1,234", "1234"), ("1{,}234", "1234"), ("1\\,234", "1234"), ("1 234 567", "1234567"),
        ("10,000.50", "10000.5"), ("−5", "-5"), ("–12", "-12"), ("٤٢", "42"), ("１２", "12"),
        ("3 \\times 10^8", "300000000"), ("3*10^8", "300000000"), ("3e8", "3 \\times 10^{8}"),
    ],
    "intervals and inequalities": [
        ("x>2", "(2,\\infty)"), ("2<x", "(2, \\infty)"), ("(2,\\infty)", "x>2"), ("(2,\\infty)", "2<x"),
        ("x > 2", "2 < x"), ("x \\geq 2", "[2,\\infty)"), ("x ≥ 2", "[2, ∞)"), ("x >= 2", "2 \\le x"),
        ("x \\in [2,\\infty)", "x \\ge 2"), ("1<x<3", "(1,3)"), ("(1,3)", "1 < x < 3"),
        ("3 > x > 1", "(1, 3)"), ("1 \\leq x < 3", "[1,3)"), ("x > 1 and x < 3", "(1,3)"),
        ("(-\\infty,1)\\cup(3,\\infty)", "x<1 or x>3"),
        ("x > 3 or x < 1", "(-\\infty, 1) \\cup (3, \\infty)"),
        ("(-∞, 1) ∪ (3, ∞)", "(-\\infty,1)\\cup(3,\\infty)"),
        ("\\left(\\frac12,\\infty\\right)", "x > 0.5"), ("(-\\infty,\\infty)", "\\mathbb{R}"),
        ("x \\ne 0", "(-\\infty,0)\\cup(0,\\infty)"), ("\\{x \\mid x > 2\\}", "(2,\\infty)"),
        ("(-\\sqrt{2}, \\sqrt{2})", "-\\sqrt2 < x < \\sqrt2"), ("(2, +\\infty)", "(2,\\infty)"),
    ],
    "sets, tuples and lists": [
        ("\\{1,2,3\\}", "\\{3,2,1\\}"), ("{1, 2}", "\\{2, 1\\}"), ("(1, 2)", "(1,2)"), ("1, 2", "(1, 2)"),
        ("2, 1", "\\{1, 2\\}"), ("3 and 2", "2, 3"), ("2, 3", "2 and 3"), ("x = 2 or x = 3", "2, 3"),
        ("x=3, x=2", "x = 2, 3"), ("1, 2, and 3", "3, 2, 1"), ("\\{0.5, 1\\}", "\\{1, \\frac12\\}"),
        ("\\{\\sqrt{2}, 1\\}", "\\{1, \\sqrt 2\\}"), ("(0.5, -1)", "(\\frac{1}{2}, −1)"),
        ("\\{5\\}", "\\{5\\}"), ("\\emptyset", "\\varnothing"), ("∅", "\\emptyset"),
        ("\\langle 1, 2 \\rangle", "(1, 2)"), ("((1, 2), (3, 4))", "((1,2),(3,4))"),
        ("(1,2), (3,4)", "(3,4), (1,2)"), ("[1, 2, 3]", "[1,2,3]"), ("\\pm 3", "3, -3"),
        ("3 or -3", "\\pm 3"), ("3, -3", "\\pm 3"), ("x = \\pm 3", "-3, 3"),
        ("x = ±\\sqrt{3}", "\\sqrt{3}, -\\sqrt{3}"), ("2 \\pm \\sqrt{3}", "2+\\sqrt{3}, 2-\\sqrt{3}"),
        ("1,234 and 5", "5, 1234"),
    ],
    "matrices": [
        ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", "\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}"),
        ("\\begin{pmatrix}0.5\\\\ 1\\end{pmatrix}", "\\begin{pmatrix}\\frac{1}{2}\\\\1\\end{pmatrix}"),
        ("[[1, 2], [3, 4]]", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
        ("\\begin{bmatrix}\\sqrt2&0\\end{bmatrix}", "\\begin{bmatrix}\\sqrt{2} & 0\\end{bmatrix}"),
        ("[\\begin{array}{cc}1&2\\\\3&4\\end{array}]", "\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}"),
    ],
    "equations": [
        ("x=2y+1", "2y+1=x"), ("5", "x = 5"), ("x=5", "5"), ("x = 5", "x=5.0"), ("5 = x", "x = 5"),
        ("y = 2x + 1", "2x+1"), ("2x+1", "y = 2x+1"), ("\\sqrt{2}", "x = \\sqrt2"),
        ("y=2x+1", "y - 2x = 1"),
    ],
    "expressions, factorials, powers": [
        ("x^2+2x+1", "(x+1)^2"), ("(x-1)(x+1)", "x^2-1"), ("2\\sqrt{2}", "\\sqrt{8}"), ("120", "5!"),
        ("1024", "2^{10}"), ("2^{10}", "4^5"), ("\\frac{1}{2}\\pi", "\\frac{\\pi}{2}"),
        ("π/2", "\\frac{\\pi}{2}"), ("\\pi r^2", "r^2\\pi"), ("√2", "\\sqrt{2}"), ("sqrt(2)", "\\sqrt{2}"),
        ("x²+1", "1+x^2"), ("3x", "x*3"), ("\\sin(x)", "sin(x)"), ("2+3i", "3i+2"),
        ("2\\sqrt{3}\\text{ cm}", "2\\sqrt{3}"), ("2\\sqrt{3}", "2\\sqrt{3}\\text{ m}"),
        ("\\log_2 8", "3\\log_2 2"),
    ],
    "number bases": [
        ("1010_2", "1010_{2}"), ("1010", "1010_2"), ("1010₂", "1010_2"), ("(1010)_2", "1010_2"),
        ("1010_{\\text{two}}", "1010_2"), ("1010 (base 2)", "1010_2"), ("ff_{16}", "FF_{16}"),
    ],
    "choices": [
        ("B", "B"), ("(B)", "B"), ("B) 12", "B"), ("B. Paris", "B"), ("option B", "B"), ("B: 12", "(B)"),
        ("the answer is B because the others are too large", "B"), ("\\textbf{(B)}", "B"), ("(b)", "B"),
        ("The correct option is (C).", "C"), ("B", "B) 12"), ("B. Paris", "B) Paris"),
        ("Paris", "B. Paris"), ("The answer is A. No, the answer is B", "B"), ("\\text{(B) } 12", "B"),
        ("B because 2 + 2 = 4", "B"),
    ],
    "dates and times": [
        ("2024-03-05", "March 5, 2024"), ("5 March 2024", "March 5, 2024"),
        ("5th of March, 2024", "2024-03-05"), ("Tuesday, March 5, 2024", "2024-03-05"),
        ("Mar 5, 2024", "5 March 2024"), ("2024/03/05", "2024-03-05"), ("25/12/2024", "December 25, 2024"),
        ("3:30 pm", "15:30"), ("15:30", "3:30 p.m."), ("3 PM", "15:00"), ("03:30 PM", "3:30 pm"),
        ("12:00 am", "00:00"), ("2024-03-05 15:30", "March 5, 2024, 3:30 pm"),
    ],
    "text": [
        ("Paris.", "paris"), ("\\text{Paris}", "Paris"), ("\"Paris\"", "Paris"), ("**yes**", "Yes"),
        ("北京", "北京"),
    ],
    "json": [
        ("{\"a\": 1, \"b\": [1, 2]}", "{\"b\":[1,2],\"a\":1}"),
        ("```json\n{\"a\": 1.0}\n```", "{\"a\": 1}"), ("[\"x\", \"y\"]", "[\"x\",\"y\"]"),
        ("{\"a\": null}", "{ \"a\" : null }"),
    ],
    "prose in the box": [
        ("The answer is 5 apples", "5"), ("The answer is: 5", "5"), ("There are 5 apples", "5"),
        ("\\text{The answer is } 5", "5"), ("Final answer: \\frac{1}{2}", "0.5"),
        ("She has 12 eggs left", "12"), ("x \\approx 3.14", "3.14"), ("5 + 7 = 12", "12"),
        ("The total is $18", "18"),
    ],
}  # fmt: skip

WRONG = {
    "percents": [
        ("5%", "50%"), ("0.5%", "50%"), ("50%", "5"), ("50", "5%"),
    ],
    "units": [
        ("5 km", "5 m"), ("5 apples", "5 oranges"), ("12 cm^2", "12 cm^3"), ("60 m/h", "60 km/h"),
        ("5 cents", "$5"),
    ],
    "fractions and decimals": [
        ("0.33", "1/3"), ("3/4", "4/3"), ("1/2", "1\\frac{1}{2}"), ("0.7500001", "75"), ("3.1", "3.14"),
    ],
    "separators and signs": [
        ("1,23", "123"), ("1 2", "12"), ("5", "-5"), ("3 \\times 10^7", "3 \\times 10^8"),
    ],
    "intervals and inequalities": [
        ("[2,\\infty)", "(2,\\infty)"), ("x<2", "(2,\\infty)"), ("x \\ge 2", "x > 2"), ("2 > x", "x > 2"),
        ("(3, 1)", "(1, 3)"), ("[1,3]", "(1,3)"), ("1 < x \\le 3", "(1,3)"), ("y > 2", "x > 2"),
        ("(-\\infty,1)", "(-\\infty,1)\\cup(3,\\infty)"), ("(-2,\\infty)", "(2,\\infty)"),
        ("(2,-\\infty)", "(2,\\infty)"),
    ],
    "sets, tuples and lists": [
        ("(2, 1)", "(1, 2)"), ("\\{1, 2\\}", "(1, 2)"), ("(1, 2)", "\\{1, 2\\}"), ("\\{1\\}", "\\{1, 2\\}"),
        ("1, 2, 3", "\\{1, 2\\}"), ("2", "2, 3"), ("2, 3", "2"), ("2, 2", "2, 3"), ("3", "\\pm 3"),
        ("\\pm 2", "\\pm 3"), ("[3, 2, 1]", "[1, 2, 3]"), ("2, 1", "(1, 2)"), ("(1, 2, 3)", "(1, 2)"),
    ],
    "matrices": [
        ("\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
        ("\\begin{pmatrix}1&2\\end{pmatrix}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
        ("\\begin{pmatrix}1&2\\\\3&5\\end{pmatrix}", "\\begin{bmatrix}1&2\\\\3&4\\end{bmatrix}"),
        ("-2", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
    ],
    "equations": [
        ("x=2y-1", "2y+1=x"), ("y = 5", "x = 5"), ("6", "x = 5"), ("x=6", "x=5"), ("x = 12 or x = 7", "12"),
        ("x = 7 or x = 12", "12"), ("x=7, x=12", "12"), ("x != 12", "12"),
    ],
    "expressions, factorials, powers": [
        ("x^2+1", "(x+1)^2"), ("24", "5!"), ("2^9", "2^{10}"), ("\\sqrt{3}", "\\sqrt{2}"), ("x^2", "x^3"),
        ("2x", "2y"), ("r^2", "\\pi r^2"), ("v", "V"), ("X", "x"), ("X^2", "x^2"),
        ("2\\sqrt{3} cm", "2\\sqrt{3}\\text{ m}"),
    ],
    "number bases": [
        ("1011_2", "1010_2"), ("10", "1010_2"), ("1010_3", "1010_2"), ("A_{16}", "1010_2"),
    ],
    "choices": [
        ("A", "B"), ("A or B", "B"), ("A) 10 B) 12", "B"), ("not B", "B"), ("the answer is not B", "B"),
        ("(A), (B)", "B"), ("C. Paris", "B. Paris"), ("B) 13", "B) 12"), ("B is wrong", "B"),
        ("A, B, C, D", "B"), ("Bravo", "B"), ("option A or B", "B"),
    ],
    "dates and times": [
        ("2024-03-06", "2024-03-05"), ("May 3, 2024", "March 5, 2024"), ("3:30 am", "15:30"),
        ("3:31 pm", "15:30"), ("Monday, March 5, 2024", "2024-03-05"), ("2024-02-30", "March 1, 2024"),
        ("12:00 pm", "00:00"),
    ],
    "text": [
        ("London", "Paris"), ("not Paris", "Paris"), ("Paris or London", "Paris"), ("", "Paris"),
    ],
    "json": [
        ("{\"a\": 2}", "{\"a\": 1}"), ("{\"a\": 1, \"b\": 2}", "{\"a\": 1}"),
        ("{\"a\": true}", "{\"a\": 1}"), ("{\"a\": \"1\"}", "{\"a\": 1}"), ("[2, 1]", "[1, 2]"),
        ("{\"a\": 1", "{\"a\": 1}"), ("{\"a\": 2, \"a\": 1}", "{\"a\": 1}"),
    ],
    "prose in the box": [
        ("The answer is not 5", "5"), ("There are 5 or 6 apples", "5"), ("There are at least 5", "5"),
        ("half of it is 5", "5"), ("There are not 5", "5"), ("The answer is 5 or 6", "6"),
        ("The answer is 3 + 2", "5"),
    ],
}  # fmt: skip

POLICY = [
    ("3+4", "7", False, "a number has to be worked out: the question handed back is no answer"),
    ("24/2", "12", False, "the same for a fraction that is not in lowest terms"),
    ("5!", "120", False, "the same for a factorial; 120 for 5! is right, as it is worked out further"),
    ("2^{10}", "1024", False, "the same for a power"),
    ("10^5", "100000", False, "the same for a power of ten; 1 \\times 10^5 is scientific notation"),
    ("3,14", "3.14", False, "a decimal comma may be a list of two numbers"),
    ("1.234,5", "1234.5", False, "the same"),
    ("03/04/2024", "2024-03-04", False, "a day and a month that can change places say no date"),
    ("3:30", "3:30 pm", False, "the gold answer names the half of the day"),
    ("3:30 pm", "3:30", True, "the gold answer leaves it open"),
    ("1010_2", "1010", True, "the question names the base; the digits are the same"),
    ("b", "B", True, "a, b, c, d or e alone picks from a list, for a gold answer that is a letter"),
    ("5000%", "50", True, "a percent sign is read as 1/100, or over, where the gold answer has none"),
    ("(1, 2)", "1, 2", True, "a list in brackets; in the gold answer's order, as a tuple has one"),
    ("(2, 1)", "1, 2", False, "a tuple has an order"),
    ("1 < x < 3", "(1, 3)", True, "an open interval and a pair look the same; the answer decides which"),
    ("[1, 2]", "(1, 2)", False, "two numbers in square brackets are a closed interval"),
    ("1.414214", "\\sqrt{2}", True, "six decimals are as good as a root"),
    ("1.41", "\\sqrt{2}", False, "two are not"),
    ("12", "12 apples", True, "an answer may leave the unit out"),
    ("twelve", "12", False, "numbers are written in digits"),
    ("(1, 2)", "\\begin{pmatrix}1\\\\2\\end{pmatrix}", False, "a column is no tuple"),
    ("No solution", "\\emptyset", False, "words are compared as words"),
]  # fmt: skip

TABLE = [(c, g, True, k) for k, pairs in RIGHT.items() for c, g in pairs]
TABLE += [(c, g, False, k) for k, pairs in WRONG.items() for c, g in pairs]


def test_the_table_is_large_enough():
    assert len(TABLE) >= 250
    assert RIGHT.keys() == WRONG.keys()
    assert len({pair[:2] for pair in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("candidate", "gold", "correct", "kind"), TABLE)
def test_table(candidate, gold, correct, kind):
    verdict = verify(f"so the result is\n<answer>{candidate}</answer>", gold, "answer_tag")
    assert verdict.correct is correct, verdict
    # Wrong answers are found to be wrong, and not just left open.
    assert correct or verdict.rule in ("different", "missing"), verdict


@pytest.mark.parametrize(("candidate", "gold", "correct", "reason"), POLICY)
def test_policy(candidate, gold, correct, reason):
    assert verify(f"\\boxed{{{candidate}}}", gold, "boxed").correct is correct, reason


@pytest.mark.parametrize("gold", sorted({gold for _, gold, _, _ in TABLE}))
def test_each_gold_answer_is_right(gold):
    assert verify(f"<answer>{gold}</answer>", gold, "answer_tag").correct
