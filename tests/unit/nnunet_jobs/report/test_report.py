"""The dataset report: self-contained, harmless whatever the data is called, bounded in size, and right about what is unlike the rest."""

import html
import re

import numpy as np
import pytest

from nnunet_jobs.contract.failure import Fault
from nnunet_jobs.report.facts import label_values, number, unusual
from nnunet_jobs.report.page import render_report
from nnunet_jobs.report.summary import summarise_case

TABLES = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "front": 1, "back": 2}}
HOSTILE = "<script src=//evil.example/x.js></script>\"'&\u202e\n\x00\udcff"


def summary(seed=0, *, size=6, shape=(24, 20, 10), spacing=(1, 1, 2), scale=1.0, values=(1, 2), **more):
    image = np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32) * scale
    label = np.zeros(shape, dtype=np.uint8)
    for place, value in enumerate(values):
        label[2 : 2 + size, 2 + 8 * place : 2 + 8 * place + size, 3:6] = value
    return {**summarise_case([image], label, spacing, affine=np.diag([*spacing, 1])), **more}


def render(cases, faults=(), tables=TABLES, **more):
    return render_report(title="Dataset004_Small", tables=tables, cases=cases, faults=list(faults), **more)


def plain(page):
    return html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page)))


def many(count=10):
    return {f"case_{n:02d}": summary(n) for n in range(count)}


def test_the_page_needs_nothing_from_anywhere():
    page = render({**many(), "photo": rgb()}, [Fault(code="truncated", case="case_01", message="cut off")], seconds=1.5)
    assert "http:" not in page
    assert "https:" not in page
    assert not re.search(r"<(script|link|iframe|object|embed|form|base)\b|\son\w+=|@import|javascript:", page)
    assert {found[:5] for found in re.findall(r'(?:src|href)="([^"]*)', page) if not found.startswith("#")} == {"data:"}
    assert not re.search(r"url\(", page)
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    assert "Checked in 1.5 s" in page


def test_hostile_names_and_messages_stay_text():
    tables = {"channel_names": {"0": HOSTILE}, "labels": {"background": 0, HOSTILE: 1}}
    fault = Fault(code=HOSTILE, case=HOSTILE, file=HOSTILE, message=HOSTILE, severity=HOSTILE)
    cases = {HOSTILE: summary(values=(1, 3), split=HOSTILE), **{f"c{n}": summary(n) for n in range(9)}}
    cases["odd"] = summary(3, size=1)
    page = render_report(title=HOSTILE, tables=tables, cases=cases, faults=[fault])
    page.encode()
    assert "<script" not in page
    assert not re.search("[\u202e\x00\udcff]", page)
    assert page.count("&lt;script") > 10
    assert not re.search(r'="[^"]*<', page)


def test_each_case_shows_its_picture_with_an_outline_for_each_label():
    page = render(many(3))
    figures = re.findall(r"<figure.*?</figure>", page)
    assert len(figures) == 3
    for figure in figures:
        assert re.search(r'<image href="data:image/(png|jpeg);base64,[A-Za-z0-9+/=]{100,}"', figure)
        outlines = re.findall(r'<path stroke="(#\w+)" d="(M[Mhv0-9 ]+)"', figure)
        assert len({colour for colour, _ in outlines}) == len(outlines) == 2
    legend = re.search(r'<ul class="legend">(.*?)</ul>', page)[1]
    assert sorted(colour for colour, _ in outlines) == sorted(re.findall(r'fill="(#\w+)"', legend))
    assert plain(legend).split() == ["front", "back"]


def test_faults_come_first_with_errors_before_warnings():
    faults = [
        Fault(code="label_empty", severity="warning", case="case_03", message="holds background only"),
        Fault(code="truncated", case="case_02", file="imagesTr/case_02.nii.gz", message="copy the file again"),
        Fault(code="no_cases", message="the source as a whole"),
    ]
    page = render({**many(4), "case_02": {}}, faults)
    words = plain(page)
    assert "Not usable: 2 errors in 1 case" in words
    places = [
        words.index(word)
        for word in ("the source as a whole", "copy the file again", "holds background only", "Geometry", "the slice with most")
    ]
    assert places == sorted(places)
    assert re.search(r"1\s+without a readable image", words)
    assert re.search(r'<div class="cell look">.*?case_03', page)


@pytest.mark.parametrize(
    ("faults", "odd", "verdict"),
    [
        ((), {}, "Usable · nothing stands out"),
        ((), {"scale": 100}, "Usable · 1 unusual case"),
        ((Fault(code="label_empty", severity="warning", message="m"),), {}, "Usable · 1 warning"),
        ((Fault(code="truncated", message="m"),), {}, "Not usable: 1 error"),
    ],
)
def test_the_verdict(faults, odd, verdict):
    assert verdict in plain(render({**many(12), "odd": summary(99, **odd)}, faults))


@pytest.mark.parametrize(
    ("odd", "what"),
    [
        ({"size": 1}, {"size of front", "size of back"}),
        ({"spacing": (1, 1, 6)}, {"spacing along z"}),
        ({"shape": (24, 20, 40)}, {"voxels along z"}),
        ({"scale": 1000}, {"intensity range of T1"}),
        ({"scale": 0}, {"T1 is the same everywhere"}),
        ({"values": (1,)}, {"no back"}),
        ({}, set()),
    ],
)
def test_a_case_unlike_the_others_is_named(odd, what):
    cases = {f"c{n:02d}": summary(n) for n in range(20)}
    found = unusual(TABLES, {**cases, "odd": summary(77, **odd)})
    assert what <= {entry.what for entry in found}
    assert {case for entry in found for case in entry.cases} == ({"odd"} if what else set())
    assert not any(entry.group for entry in found)
    assert unusual(TABLES, {"odd": summary(77, **odd), **dict(list(cases.items())[:3])}) == [
        entry for entry in unusual(TABLES, {"odd": summary(77, **odd)}) if "same everywhere" in entry.what
    ]


def test_a_second_scanner_is_a_group_and_no_alarm():
    cases = {f"c{n:02d}": summary(n, scale=1000 if n % 5 == 0 else 1) for n in range(30)}
    (entry,) = unusual(TABLES, cases)
    assert (entry.group, len(entry.cases)) == (True, 6)
    page = render(cases)
    assert "nothing stands out" in page
    assert "a group of its own" in page
    assert 'class="cell look"' not in page


def test_undeclared_values_and_regions_are_named():
    tables = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "whole": [1, 2], "core": 2}}
    found = label_values(tables, {"a": summary(values=(1, 2)), "b": summary(values=(9,))})
    assert [(label.value, label.name, label.declared) for label in found] == [
        (1, "whole", True),
        (2, "whole, core", True),
        (9, "value 9, not declared", False),
    ]


def rgb():
    rng = np.random.default_rng(1)
    label = np.zeros((40, 30, 1), dtype=np.uint8)
    label[5:15, 5:20] = 1
    return summarise_case([rng.integers(0, 256, (40, 30, 1), dtype=np.uint8) for _ in range(3)], label, (1, 1, 999))


def test_photographs_are_measured_in_percent():
    page = render({"a": rgb()}, tables={"channel_names": dict(zip("012", "RGB", strict=True)), "labels": {"background": 0, "x": 1}})
    words = plain(page)
    assert "in percent of the picture" in words
    assert "12.50" in words
    assert "Pixels along x" in words
    assert "along z" not in words
    assert "40 × 30" in words


def test_a_thousand_cases_give_a_page_of_a_few_megabytes():
    shape = (96, 96, 3)
    noise = [summary(n, shape=shape, size=40) for n in range(4)]
    cases = {f"case_{n:04d}": noise[n % 4] for n in range(1_000)}
    cases["case_0777"] = summary(5, shape=shape, size=2)
    faults = [Fault(code="label_empty", severity="warning", case=f"case_{n:04d}", message="m" * 5_000) for n in range(900)]
    page = render(cases, faults[:20])
    assert len(page) < 4_000_000
    assert page.count("<figure") == 240
    assert "240 of 1,001 cases" not in page
    assert "240 of 1,000 cases" in page
    assert page.index("case_0777</b>") < page.index("case_0500</b>" if "case_0500</b>" in page else "All cases in numbers")
    assert "case_0999" in page
    assert len(render(cases, faults)) < 6_000_000
    assert "The first 300 of 900 faults" in render(cases, faults)


@pytest.mark.parametrize(
    "cases", [{}, {"a": {}}, {"a": summarise_case([], None, ())}, {"a": summarise_case([np.zeros((0, 1, 2))], None, ())}]
)
def test_a_dataset_without_a_single_image_still_has_a_page(cases):
    assert "Dataset004_Small" in render(cases, [Fault(code="no_cases", message="nothing here")])
    assert "nothing here" in render(cases, [Fault(code="no_cases", message="nothing here")], tables={})


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0"), (35, "35"), (1234567, "1,234,567"), (0.1234, "0.123"), (1.234, "1.23"), (123.456, "123.5"), (98765.4, "98,765")],
)
def test_numbers_are_short(value, shown):
    assert number(value) == shown


def test_numbers_that_are_none():
    assert number(None) == number(float("nan")) == number(float("inf")) == "–"
