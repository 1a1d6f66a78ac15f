"""What tests of several folders share."""

import pytest
import torch


@pytest.fixture
def one_thread():
    """Small matrices gain nothing from more, and tests run beside others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
