"""What a rank does for its peers when it fails."""

from __future__ import annotations

from unittest.mock import Mock, call

import pytest
from raylaunch_actors.reference.launch import _peers_freed_on_failure


def test_a_failure_is_reported_and_then_ends_the_waits_of_the_peers() -> None:
    told = Mock()
    error = ValueError("no")
    with pytest.raises(ValueError, match="no"), _peers_freed_on_failure(told.gate, told.communicator):
        raise error
    assert told.mock_calls == [call.gate.fail(error), call.communicator.abort()]


def test_a_rank_that_ends_well_frees_nobody_and_leaves_its_group() -> None:
    for _ in range(2):
        told = Mock()  # another communicator of the same name would be refused
        with _peers_freed_on_failure(told.gate, told.communicator):
            pass
        assert told.mock_calls == []
