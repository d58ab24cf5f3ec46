"""The servers that tests run: what other tests rely on."""

from __future__ import annotations

import socket

import pytest

from tests.helpers import answer_all, serving


def test_a_server_that_has_gone_keeps_its_port() -> None:
    """Else a server of another test is given it, and the mail that is meant to find none."""
    with serving(answer_all()) as server:
        socket.create_connection((server.host, server.port)).close()
        server.stop_listening()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((server.host, server.port))
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((server.host, server.port))
        with serving(answer_all(), server.port) as back:
            socket.create_connection((back.host, server.port)).close()
