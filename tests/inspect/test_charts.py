"""Curves as SVG: points where they belong, bands where they belong, nothing for values that are no numbers."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET

import pytest

from openrlhf.inspect.charts import BOTTOM, HEIGHT, LEFT, MOST, RIGHT, TOP, WIDTH, chart, curve, number
from openrlhf.training.bands import BANDS, Band, band_shown
from openrlhf.training.metric_names import METRICS, REWARD_PARTS


def drawn(*curves: list[tuple[float, float]], band: Band | None = None) -> ET.Element:
    return ET.fromstring(str(chart(curves, band)))


def places(picture: ET.Element) -> list[list[tuple[float, float]]]:
    lines = [line.attrib["points"].split() for line in picture.iter("polyline")]
    return [[tuple(map(float, place.split(","))) for place in line] for line in lines]  # type: ignore[misc]


def test_points_lie_where_their_numbers_say() -> None:
    ((first, middle, last),) = places(drawn([(1, 0.0), (3, 5.0), (5, 10.0)]))
    assert (first[0], last[0]) == (LEFT, WIDTH - RIGHT)
    assert middle == pytest.approx(((first[0] + last[0]) / 2, (first[1] + last[1]) / 2), abs=0.1)
    assert HEIGHT - BOTTOM > first[1] > last[1] > TOP  # larger is higher, with a margin


def test_two_runs_share_a_scale_and_say_their_numbers() -> None:
    picture = drawn([(1, 0.0), (2, 1.0)], [(1, 1.0)])
    one, other = places(picture)
    assert one[1][1] == other[0][1]
    assert [line.attrib["class"] for line in picture.iter("polyline")] == ["run0", "run1"]
    assert [title.text for title in picture.iter("title")] == ["step 1: 0", "step 2: 1", "step 1: 1"]


def test_the_band_is_drawn_as_far_as_the_picture_goes() -> None:
    """Values 0 to 10: healthy up to 2.5, red above 5; with the margin the picture goes from −0.5 to 10.5."""
    picture = drawn([(1, 0.0), (2, 10.0)], band=Band((None, 2.5), (None, 5.0), ""))
    height = HEIGHT - TOP - BOTTOM
    heights = {rect.attrib["class"]: float(rect.attrib["height"]) for rect in picture.iter("rect")}
    assert heights == {"healthy": pytest.approx(3 / 11 * height, abs=0.1), "red": pytest.approx(0.5 * height, abs=0.1)}
    assert not list(drawn([(1, 0.0)], band=Band((5.0, 6.0), (-9.0, 9.0), "")).iter("rect"))


def test_values_that_are_no_numbers_are_no_points() -> None:
    lines = [{"step": 1, "kl": math.nan}, {"step": 2, "kl": 3.0}, {"step": 3}, {"step": 4, "kl": math.inf}]
    assert curve(lines, "kl") == [(2, 3.0)]
    assert not list(drawn([]).iter("polyline"))
    assert places(drawn([(2, 3.0)])) == [[pytest.approx((LEFT, (TOP + HEIGHT - BOTTOM) / 2), abs=0.1)]]


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    thin = curve([{"step": i, "kl": float(i)} for i in range(10_000)], "kl")
    assert len(thin) <= MOST + 1 and thin[0] == (0, 0.0) and thin[-1] == (9999, 9999.0)


def test_every_band_is_of_a_metric_and_its_red_flag_lies_outside_the_healthy_range() -> None:
    for name, band in BANDS.items():
        assert name in METRICS or name.startswith(REWARD_PARTS)
        (low, high), (bottom, top) = band.healthy, band.red
        assert low is None or (bottom is not None and bottom <= low)
        assert high is None or (top is not None and top >= high)
        assert band.verdict(math.nan) == "red"


@pytest.mark.parametrize(
    ("value", "verdict"), [(0.5, "healthy"), (0.05, "watch"), (0.01, "red"), (7.0, "watch"), (9.5, "red")]
)
def test_verdicts_on_an_entropy(value: float, verdict: str) -> None:
    assert BANDS["entropy"].verdict(value) == verdict


def test_bands_in_words() -> None:
    assert [band_shown(r) for r in ((0.1, 6.0), (None, 0.2), (0.5, None))] == [
        "0.1 to 6",
        "at most 0.2",
        "at least 0.5",
    ]


def test_numbers_on_an_axis() -> None:
    shown = [number(x) for x in (0.0, 0.012345, -3.14159, 999.6, 2410.4, 99_999.0, 2.5e6, -1e-7)]
    assert shown == ["0", "0.0123", "-3.14", "1e+03", "2410", "99999", "2.5e+06", "-1e-07"]
