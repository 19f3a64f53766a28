"""The share of the target language in the reasoning."""

import pytest

from posttrain.types import PosttrainError

# Two sentences each, of the kind that a reasoning has.
SAID = {
    "en": "First we have to find out how many apples there are in the basket. Then we add those she bought.",
    "de": "Zuerst müssen wir herausfinden, wie viele Äpfel im Korb liegen. Dann zählen wir alle dazu.",
    "fr": "D'abord il faut savoir combien de pommes il y a dans le panier. Ensuite on ajoute les autres.",
    "es": "Primero hay que averiguar cuántas manzanas hay en la cesta. Después sumamos las que compró.",
    "ru": "Сначала нужно узнать, сколько яблок лежит в корзине. Затем прибавим те, которые она купила.",
    "uk": "Спочатку потрібно дізнатися, скільки яблук лежить у кошику. Потім додамо ті, які вона купила.",
    "zh": "首先我们需要知道篮子里一共有多少个苹果。然后把她在商店里买来的苹果加上去，就得到了最后的结果。",
    "ja": "まず、かごの中にりんごがいくつあるかを調べる必要があります。次に、彼女が買ったものを足します。",
    "ko": "먼저 바구니 안에 사과가 몇 개 있는지 알아내야 합니다. 그런 다음 그녀가 산 것을 더하면 됩니다.",
    "hi": "पहले हमें यह पता लगाना होगा कि टोकरी में कितने सेब हैं। फिर हम उसके खरीदे हुए सेब जोड़ देते हैं।",
    "ar": "أولا يجب أن نعرف كم تفاحة توجد في السلة. ثم نضيف التفاحات التي اشترتها من المتجر في الصباح.",
    "th": "ก่อนอื่นเราต้องรู้ว่ามีแอปเปิ้ลกี่ลูกในตะกร้า จากนั้นเราบวกจำนวนที่เธอซื้อมาจากร้านค้าในตอนเช้า",
}


@pytest.mark.parametrize("code", SAID)
def test_each_language_is_itself_and_no_other(reward, code):
    text = f"<think>{SAID[code]}</think><answer>7</answer>"
    assert reward([text], language=code) == [1.0]
    assert reward([[{"role": "assistant", "content": text}]], language=code, prompts=["?"]) == [1.0]
    other = "en" if code != "en" else "de"
    assert reward([text], language=other) == [0.0]


def test_formulas_code_and_numbers_are_left_out(reward):
    text = (
        f"<think>{SAID['de']}\n$x = \\frac{{the}}{{value}}$ und $$total + number = result$$\n"
        "```python\ndef total(apples):\n    return apples + bought  # the number of apples\n```\n"
        "\\(here\\) `return the_value` https://example.org/the/answer/is/here 3 + 4 = 7, x_1, y2</think>7"
    )
    assert reward([text], language="de") == [1.0]


@pytest.mark.parametrize(
    "between",
    [
        "$5 and then $7", "$5 and then $ 7", "US$ 5 and then US$ 7", "\\$5 and then \\$7",
        "$5 and then .../$7", "$5 and then 7$", "$5,000.50 and then US$.",
        "$ 5 and then $ 7", "a $ and then a $",
    ],
)  # fmt: skip
def test_what_stands_between_two_prices_is_prose(reward, between):
    text = f"It costs {between} more than we had with us"
    assert len([word for word in text.split() if word.isalpha() and len(word) > 1]) == 10
    assert reward([text]) == [1.0], "one word less would be too few to tell"


@pytest.mark.parametrize(
    "formula",
    [
        "$and^2+then$", "$and$ so $then$", "$$and then$$", "$$\nand then\n$$", "$ and = then $",
        "$5 \\text{and then}$", "$\\$5 and then$", "$2x and then$", "$-and then$", "$3^2$ and $then$, $5",
    ],
)  # fmt: skip
def test_mathematics_between_dollar_signs_is_none(reward, formula):
    rest = "It costs more than we had with us"
    assert reward([f"{rest} {formula}"]) == [None], "eight words are too few to tell"
    assert reward([f"{rest} {formula.replace('$', ' ')}"]) == [1.0]


@pytest.mark.parametrize(("first", "second"), [("en", "de"), ("en", "ru"), ("fr", "es"), ("de", "ko")])
def test_words_are_counted(reward, first, second):
    words = {code: sum(len(word) > 1 for word in SAID[code].split()) for code in (first, second)}
    found = reward([f"<think>{SAID[first]}\n{SAID[second]}</think>"], language=first)[0]
    assert found == pytest.approx(words[first] / sum(words.values()), abs=0.05)


def test_a_change_of_script_within_a_sentence(reward):
    said = "我们使用 gradient descent 来训练这个模型并且观察它的变化"  # 19 characters, 2 words
    assert reward([f"<think>{said}</think>"], language="zh") == [pytest.approx(19 / 21)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"{SAID['en']}\nThe answer is: 7", 1.0),
        (f"{SAID['en']}\n<answer>{SAID['de']}</answer>", 1.0),
        (f"{SAID['en']} \\boxed{{7}} {SAID['de']} {SAID['fr']}", 1.0),
        (f"<think>{SAID['en']}</think>{SAID['de']}", 1.0),
        (f"<think>{SAID['de']}</think>{SAID['en']}", 0.0),
        (f"{SAID['en']}</think>{SAID['de']}", 1.0),  # the prompt opened it
        (f"<think>{SAID['en']}", 1.0),  # cut off
        (f"{SAID['en'].upper()}", 1.0),
    ],
)
def test_what_the_reasoning_is(reward, text, value):
    assert reward([text]) == [value]


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "{", "<think></think>", "<think>Let me think.</think>", "3 + 4 = 7\nThe answer is: 7",
        "x y z " * 100,
        "1 2 3 " * 1000, "<think>苹果</think>", "\x00" * 100, "$" * 10**6, "\\(" * 10**6, "`" * 10**6,
        "$a" * 10**6, ("$" + "\\$" * 200) * 10**4, "$ = " * 10**6, "$" + "1," * 10**6,
        "😀" * 1000,
        "<think>" * 10**6, "\\[" * 10**6, "<a" * 10**6,
    ],
)  # fmt: skip
def test_none_where_there_is_too_little_to_tell(reward, text):
    assert reward([text]) == [None]


def test_long_reasoning_and_odd_text(reward):
    assert reward([f"<think>{SAID['en'] * 1000}</think>"]) == [pytest.approx(1.0)]
    odd = reward(["\ud800 " * 50 + SAID["en"], "zxqv wvutq " * 1000, "a\u0301\u0301" * 1000])
    assert all(value is None or 0.0 <= value <= 1.0 for value in odd)


def test_norwegian_is_one_language(reward):
    said = "Først må vi finne ut hvor mange epler det er i kurven. Så legger vi til dem hun kjøpte."
    assert len({reward([said], language=code)[0] for code in ("no", "nb", "nn")}) == 1
    assert reward([said], language="no") == [1.0]


@pytest.mark.parametrize(
    ("code", "message"), [("xx", "no ISO 639-1 code"), ("eng", "'en'"), ("EN", "'en'"), ("", "no ISO")]
)
def test_unknown_codes_are_refused(reward, code, message):
    with pytest.raises(PosttrainError, match=message):
        reward(["text"], language=code)
