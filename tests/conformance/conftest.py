import pytest


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw no curves of the many trainings."""
    monkeypatch.setattr("medplan.evaluate.plots.progress", lambda log, png: png)
