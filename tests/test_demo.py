"""The demonstration runs to its end and says what it found."""

import re

import pytest

from pyrosys import demo


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    demo.run()
    text = capsys.readouterr().out
    assert "real parameters" in text
    perplexity = re.search(r"perplexity (\d+\.\d+)", text)
    assert perplexity
    assert float(perplexity[1]) == pytest.approx(3.8, abs=0.3)
    recoveries = [int(percent) for percent in re.findall(r"recovery (\d+)%", text)]
    assert len(recoveries) == demo.DESIGNS
    assert min(recoveries) > 35
