import pytest

from harness import Server, write_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory):
    """For tests that don't harm it."""
    with Server(tmp_path_factory.mktemp("shared") / "data") as server:
        yield server


@pytest.fixture
def server(tmp_path):
    """A server of the test's own, to be killed at will."""
    with Server(tmp_path / "data") as own:
        yield own
