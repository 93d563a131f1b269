"""What the tests of the method share."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked_types():
    """Let the package itself refuse what the types that tests check would refuse first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
