"""A run of `make gpu` whose processes reply as a test says."""

import pytest
from gpu.result import FACTS, RATES, Office

from fastnest.benchmarks.gpu.record import Record
from fastnest.benchmarks.gpu.session import Session


@pytest.fixture
def session(tmp_path):
    """session(replies, ...): one whose workers reply replies(job) to a job."""

    def make(replies, listen=None, **options) -> Session:
        one = Record(tmp_path / "card.json", FACTS)
        one.put("rates", RATES)
        return Session(one, listen=listen, begin=Office(replies), environment={"KEPT": "1"}, **options)

    return make
