"""Planted cases: what is put into clean documents is found, and the clean documents stay."""

import base64
import glob
import gzip
import json
import os
import random

import numpy as np
import pytest

from hcxjax.data.cleaning.duplicates import EXACT, NEAR, NearDuplicates, duplicates, exact_key
from hcxjax.data.cleaning.language import Mojibake, letter_share
from hcxjax.data.cleaning.overlap import BenchmarkOverlap
from hcxjax.data.cleaning.personal import PersonalData
from hcxjax.data.cleaning.quality import Lines
from hcxjax.data.cleaning.steps import clean
from hcxjax.world import LANGUAGES, World

PLANTED = 100
_REST = "가운데 이웃에게 나누어 준 것을 빼고 남은 것의 수로 가장 알맞은 것은 다음 다섯 가지 가운데 무엇인가?"
QUESTIONS = [
    f"{place}에서 열린 장날에 {who} 산 {thing} {_REST}"
    for place in ("강릉", "남원", "통영", "제천", "안동")
    for who in ("가람이", "나래가")
    for thing in ("사과", "물통")
]


def rrn(draw):
    born = f"{draw.randint(50, 99)}{draw.randint(1, 12):02}{draw.randint(1, 28):02}"
    digits = f"{born}{draw.choice('12')}{draw.randint(0, 99999):05}"
    rest = sum(weight * int(digit) for weight, digit in zip((2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5), digits, strict=True))
    return f"{digits[:6]}-{digits[6:]}{(11 - rest % 11) % 10}"


def card(draw):
    digits = "4" + "".join(draw.choices("0123456789", k=14))
    doubled = [int(digit) * (2 - place % 2) for place, digit in enumerate(reversed(digits))]
    last = -sum(sum(divmod(value, 10)) for value in doubled) % 10
    digits = f"{digits}{last}"
    return "-".join(digits[at : at + 4] for at in range(0, 16, 4))


def phone(draw):
    gap = draw.choice(["-", ".", " ", ""])
    return gap.join(["010", str(draw.randint(2000, 9999)), f"{draw.randint(0, 9999):04}"])


def edited(draw, text):
    """One word in sixty is another."""
    return " ".join("다른말" if draw.random() < 1 / 60 else word for word in text.split(" "))


def inserted(what):
    def plant(draw, text):
        at = draw.choice([place for place, character in enumerate(text) if character == " "] or [0])
        return f"{text[:at]} {what(draw)} {text[at:]}"

    return plant


CASES = {
    "e-mail address": inserted(lambda draw: f"hong{draw.randint(1, 999)}@naver.com"),
    "phone number": inserted(phone),
    "resident-registration number": inserted(rrn),
    "card number": inserted(card),
    "benchmark question": inserted(lambda draw: draw.choice(QUESTIONS)),
    "mojibake (UTF-8 as Windows-1252)": lambda draw, text: ("가을 하늘 " + text).encode().decode("cp1252", "ignore"),
    "mojibake (UTF-8 as CP949)": lambda draw, text: ("가을 하늘 " + text).encode().decode("cp949", "replace"),
    "line of 100,000 characters": lambda draw, text: text + "\n" + base64.b64encode(draw.randbytes(75_000)).decode(),
}
"""What is planted in a document."""

EXPECTED = {"e-mail address": "e-mail", "resident-registration number": "resident number"}


def found(name, outcome):
    wanted = EXPECTED.get(name, name)
    if wanted in ("e-mail", "phone number", "resident number", "card number"):
        return wanted in outcome.changes
    reason = {"b": "benchmark overlap", "m": "mojibake", "l": "lines: one too long"}[name[0]]
    return outcome.dropped == reason


def table(texts, bench):
    """Case → (planted, found, false positives among the clean documents)."""
    steps = [Mojibake(), Lines(20_000, None, 0.0), BenchmarkOverlap(paths=(bench,)), PersonalData()]
    clean_outcomes = [clean(steps, text) for text in texts]
    rows = {}
    for name, plant in CASES.items():
        draw = random.Random(name)
        # Text without Hangul has next to nothing that a wrong encoding could break.
        fit = [text for text in texts if letter_share(text, "hangul") > 0.3] if "mojibake" in name else texts
        hits = sum(found(name, clean(steps, plant(draw, draw.choice(fit)))) for _ in range(PLANTED))
        rows[name] = (PLANTED, hits, sum(found(name, outcome) for outcome in clean_outcomes))
    return rows | duplicate_rows(texts)


def duplicate_rows(texts):
    near, draw = NearDuplicates(), random.Random(0)
    originals = draw.sample([at for at, text in enumerate(texts) if len(near.signature(text))], 2 * PLANTED)
    copies = [" ".join(texts[at].split()) for at in originals[:PLANTED]] + [
        edited(draw, texts[at]) for at in originals[PLANTED:]
    ]
    everything = [*texts, *copies]
    gone = duplicates(
        np.arange(len(everything)),
        [exact_key(text) for text in everything],
        [near.signature(text) for text in everything],
        near,
    )
    first = len(texts)
    exact = [own for own in range(first, first + PLANTED) if gone.get(own, ("",))[0] == EXACT]
    close = [own for own in range(first + PLANTED, first + 2 * PLANTED) if own in gone]
    false = [[own for own in range(first) if gone.get(own, ("",))[0] == reason] for reason in (EXACT, NEAR)]
    return {
        "exact duplicate": (PLANTED, len(exact), len(false[0])),
        "near-duplicate (1 word in 60)": (PLANTED, len(close), len(false[1])),
    }


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "questions.jsonl"
    path.write_text("\n".join(json.dumps({"question": question}) for question in QUESTIONS))
    return str(path)


def test_planted_cases_are_found_and_the_world_stays(bench):
    texts = [text for language in LANGUAGES for text in World().documents(language, count=150)]
    rows = table(texts, bench)
    for name, (planted, hits, false) in rows.items():
        if "duplicate" not in name:
            assert hits >= 0.99 * planted and false == 0, (name, rows)
    assert rows["exact duplicate"][1] == PLANTED
    # Short documents: 60 windows each, of which an edited word changes ten.
    assert rows["near-duplicate (1 word in 60)"][1] >= 0.4 * PLANTED, rows


@pytest.mark.slow
def test_planted_cases_in_real_text(bench):
    folder = os.environ.get("HCXJAX_DATA")
    if not folder:
        pytest.skip("HCXJAX_DATA is not set")
    texts = []
    for path in sorted(glob.glob(f"{folder}/pretrain/*/*.jsonl.gz")):
        with gzip.open(path, "rt") as lines:
            texts += [
                record["text"]
                for _, line in zip(range(200), lines, strict=False)
                if "text" in (record := json.loads(line))
            ]
    rows = table(texts, bench)
    print(
        "\n".join(f"| {name} | {planted} | {hits} | {false} |" for name, (planted, hits, false) in rows.items()),
        len(texts),
    )
    assert all(hits >= 0.95 * planted for planted, hits, _ in rows.values()), rows
