"""The picture of private runs: every run in its place, by its own figures."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from common.errors import DataError
from simulations.report.compare_picture import picture

SVG = "{http://www.w3.org/2000/svg}"


def run_of(name: str, trust: str, gain: float) -> dict[str, Any]:
    def versus(mean: float) -> dict[str, dict[str, float]]:
        values = {"mean": mean, "low": mean - 0.1, "high": mean + 0.2, "p": 0.5}
        return {"ndcg@20": values, "tail_ndcg@20": values}

    private = {"vs_local": versus(gain), "privacy": {"epsilon": 7.99, "trust": trust}}
    return {"name": name, "arms": {"federated-dp": private, "centralized": {"vs_local": versus(1)}}}


def test_dots_lie_at_the_share_of_the_way_that_was_gone() -> None:
    runs = [run_of("a", "shop", 0.25), run_of("b", "federation", 0.75)]
    root = ElementTree.fromstring(picture({"runs": runs}))
    panel = root.findall(f"{SVG}g")[0]
    heights = [float(dot.attrib["cy"]) for dot in panel.findall(f"{SVG}circle")]
    lines = [re.match(r"M\S+ (\S+)H", p.attrib["d"]) for p in panel.findall(f"{SVG}path")]
    local, half, goal = (float(line[1]) for line in lines if line)
    assert half == pytest.approx((local + goal) / 2, abs=0.2)
    shares = [(local - height) / (local - goal) for height in heights]
    assert shares == pytest.approx([0.25, 0.75], abs=0.01)
    words = [text.text for text in panel.findall(f"{SVG}text")]
    assert words.count("trust shop") == words.count("trust federation") == 1
    assert words.count("ε = 8") == 2


def test_an_interval_reaches_from_low_to_high() -> None:
    root = ElementTree.fromstring(picture({"runs": [run_of("a", "shop", 0.5)]}))
    for panel in root.findall(f"{SVG}g"):
        (dot,) = panel.findall(f"{SVG}circle")
        (bar,) = (p for p in panel.findall(f"{SVG}path") if "V" in p.attrib["d"])
        ends = re.match(r"M\S+ (\S+)V(\S+)", bar.attrib["d"])
        assert ends is not None
        middle = float(dot.attrib["cy"])
        above, below = middle - float(ends[2]), float(ends[1]) - middle
        assert below > 0
        assert above == pytest.approx(2 * below, abs=0.3)


def test_a_run_without_the_private_arm_is_named() -> None:
    run = run_of("mine", "shop", 0.1)
    del run["arms"]["federated-dp"]
    with pytest.raises(DataError, match="mine has no federated-dp"):
        picture({"runs": [run]})


def test_a_run_that_tested_nobody_is_named() -> None:
    run = run_of("mine", "shop", 0.1)
    nothing = dict.fromkeys(("mean", "low", "high", "p"))
    run["arms"]["federated-dp"]["vs_local"] = {"ndcg@20": nothing, "tail_ndcg@20": nothing}
    with pytest.raises(DataError, match="mine has no federated-dp"):
        picture({"runs": [run]})
