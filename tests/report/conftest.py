"""The page that the tests of the report share."""

import pytest

from pipeline.chain import manifest
from tests.report import HOSTILE, summary_of


@pytest.fixture
def made(copy, run):
    """The page of a chain with an evaluation, as the script makes it."""
    manifest.write_json(copy / "evaluate.json", summary_of(copy, HOSTILE))
    status, out, err = run("report", "--runs", copy)
    assert status == 0, err
    assert "it lies in" in out
    return copy / "report.html"
