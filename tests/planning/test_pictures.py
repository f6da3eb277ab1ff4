import xml.etree.ElementTree as ElementTree

import pytest

from hcxjax.planning.pictures import memory_picture, time_picture

SVG = "{http://www.w3.org/2000/svg}"


def test_the_memory_bar_is_as_long_as_its_parts(estimated):
    picture = ElementTree.fromstring(memory_picture(estimated))
    bars = [box for box in picture.iter(f"{SVG}rect") if box.find(f"{SVG}title") is not None and box.get("y") == "1.0"]
    total = sum(float(bar.get("width")) for bar in bars)
    limit = float(picture.find(f"{SVG}line").get("x1")) - 1
    assert total / limit == pytest.approx(estimated.memory.total / estimated.pod.device_memory, abs=0.001)
    assert len(bars) == 6 and "GB" in bars[0].find(f"{SVG}title").text


def test_the_time_bars_are_in_proportion(estimated):
    picture = ElementTree.fromstring(time_picture(estimated))
    bars = [float(box.get("width")) for box in picture.iter(f"{SVG}rect") if box.find(f"{SVG}title") is not None]
    seconds = sorted(estimated.roofline.seconds.values(), reverse=True)
    assert bars == sorted(bars, reverse=True) and len(bars) == len(seconds)
    assert bars[1] / bars[0] == pytest.approx(seconds[1] / seconds[0], abs=0.01)
