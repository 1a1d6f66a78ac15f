"""What tests of several folders share."""

import pytest
import torch
from building import copy_of_sources


@pytest.fixture
def one_thread():
    """Small matrices gain nothing from more, and tests run beside others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tree(tmp_path):
    """A copy of the sources with nothing built in it."""
    return copy_of_sources(tmp_path)
