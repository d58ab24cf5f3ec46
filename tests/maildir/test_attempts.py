"""The history of attempts: the last answers to messages that wait, in little memory."""

from __future__ import annotations

import json
from typing import Any

import pytest

from maildirqmtp.maildir.attempts import (
    FORGOTTEN_S,
    GIVES_WAY_S,
    LAST,
    MOST,
    MOST_TEXTS,
    NONE,
    SEARCH_S,
    TEXT_MAX,
    AttemptHistory,
)

NOW = 1_800_000_000


def again(history: AttemptHistory) -> AttemptHistory:
    """Return what another run reads of it."""
    found = AttemptHistory()
    found.take(json.loads(json.dumps(history.content())))
    return found


def test_the_last_answers_and_the_count_outlive_a_run() -> None:
    """An administrator asks why a message waits after the daemon was restarted, too."""
    history = AttemptHistory()
    for number in range(LAST + 3):
        assert history.note("1.a", f"reason {number}", NOW + number)
    last = tuple((NOW + n, f"reason {n}") for n in reversed(range(3, LAST + 3)))
    assert history.of("1.a") == again(history).of("1.a") == (LAST + 3, last)
    assert history.of("2.a") == NONE
    other = again(history)
    other.note("1.a", "reason 1", NOW + 99)
    assert other.of("1.a") == (LAST + 4, ((NOW + 99, "reason 1"), *last[:-1]))


def test_a_text_is_cut() -> None:
    """A server may say 64 KiB."""
    history = AttemptHistory()
    history.note("1.a", "x" * 70_000, NOW)
    assert history.of("1.a") == (1, ((NOW, "x" * TEXT_MAX),))


def test_a_message_that_is_done_is_forgotten() -> None:
    """Once."""
    history = AttemptHistory()
    history.note("1.a", "busy", NOW)
    assert history.forget("1.a")
    assert not history.forget("1.a")
    assert history.of("1.a") == NONE


def test_of_very_many_messages_those_that_came_first_are_kept() -> None:
    """In turn each would push the other out, and none would have a history."""
    history = AttemptHistory()
    for _ in range(2):
        for number in range(2 * MOST):
            kept = history.note(str(number), "busy", NOW)
            assert kept == (number < MOST)
    assert len(history) == MOST
    assert history.of("0")[0] == 2


def test_what_nobody_tries_any_more_gives_way() -> None:
    """A message that an administrator has removed must not keep its place for ever."""
    history = AttemptHistory()
    for number in range(MOST):
        history.note(str(number), "busy", NOW)
    later = NOW + GIVES_WAY_S + 1
    history.note("0", "busy", later)
    assert history.note("new", "busy", later)
    assert history.of("0")[0] == 2
    assert history.of("1") == NONE


def test_looking_for_room_in_vain_is_rare() -> None:
    """50,000 messages would each look through all 5,000."""
    history = AttemptHistory()
    for number in range(MOST):
        history.note(str(number), "busy", NOW)
    assert not history.note("new", "busy", NOW)
    searched: list[float] = []
    history.forget_older = searched.append  # type: ignore[method-assign, assignment]
    assert not history.note("new", "busy", NOW)
    assert not history.note("new", "busy", NOW + SEARCH_S - 1)
    assert searched == []
    assert not history.note("new", "busy", NOW + SEARCH_S + 1)
    assert searched == [NOW + SEARCH_S + 1 - GIVES_WAY_S]
    assert not history.note("new", "busy", NOW - 10 * SEARCH_S), "the clock was set back"
    assert len(searched) == 2


def test_after_a_month_a_message_is_forgotten() -> None:
    """Nobody tells the file that a message was removed by hand."""
    history = AttemptHistory()
    history.note("old", "busy", NOW - FORGOTTEN_S - 1)
    history.note("new", "busy", NOW)
    history.forget_older(NOW - FORGOTTEN_S)
    assert history.of("old") == NONE
    assert history.of("new") == (1, ((NOW, "busy"),))


def test_texts_that_nobody_needs_any_more_make_room() -> None:
    """Many servers write a number into each answer."""
    history = AttemptHistory()
    for number in range(3 * MOST_TEXTS):
        assert history.note("1.a", f"greylisted {number}", NOW)
    assert history.of("1.a")[1][0] == (NOW, f"greylisted {3 * MOST_TEXTS - 1}")
    assert len(history.content()["texts"]) <= MOST_TEXTS


def test_where_each_message_has_texts_of_its_own_the_oldest_go() -> None:
    """Memory and file are bounded; the count of attempts stays right."""
    history = AttemptHistory()
    for turn in range(3):
        for number in range(MOST_TEXTS - 5):
            history.note(str(number), f"turn {turn}, queue id {number}", NOW + turn)
    assert len(history.content()["texts"]) <= MOST_TEXTS
    tries, last = history.of("0")
    assert tries == 3
    assert last[0][0] == NOW + 2
    assert last[0][1] in ("", "turn 2, queue id 0")


def test_looking_for_texts_in_vain_is_rare() -> None:
    """Each message would look through all the others."""
    history = AttemptHistory()
    for number in range(MOST_TEXTS):
        history.note(str(number), f"queue id {number}", NOW)
    assert not history.note("new", "something else", NOW)
    history._keep_last = pytest.fail  # type: ignore[method-assign, assignment]
    assert not history.note("new", "something else", NOW)
    assert history.note("0", "something else", NOW + SEARCH_S)
    assert history.of("0")[1][0] == (NOW + SEARCH_S, ""), "there is no room for what was said"
    assert history.note("new", "queue id 5", NOW)


def test_half_of_it_is_still_right() -> None:
    """As when the file would be too large."""
    history = AttemptHistory()
    for number in range(10):
        history.note(str(number), f"reason {number}", NOW)
    history.halve()
    assert len(history) == len(history.content()["texts"]) == 5
    assert history.of("4") == (1, ((NOW, "reason 4"),))
    for _ in range(4):
        history.halve()
    assert not history


@pytest.mark.parametrize(
    "line",
    ["", "x", "1", "1 x 0", f"1 {NOW} 1", f"1 {NOW} x", f"0 {NOW} 0", "1 -5 0", f"-1 {NOW} 0",
     f"1 {'9' * 5000} 0", f"{'9' * 5000} {NOW} 0", f"1 {'9' * 20} 0"],
)  # fmt: skip
def test_a_line_that_is_wrong_is_none(line: str) -> None:
    """The file may have been written by anybody; and the next attempt counts."""
    history = AttemptHistory()
    history.take({"texts": ["busy"], "messages": {"1.a": line}})
    assert history.of("1.a") in (NONE, (1, ()))
    history.note("1.a", "later", NOW)
    assert history.of("1.a")[1][:1] in ((), ((NOW, "later"),))
    history.forget_older(0)
    history.halve()


@pytest.mark.parametrize(
    "content",
    [None, [], "x", {}, {"texts": []}, {"texts": [], "messages": []},
     {"texts": [1], "messages": {}}, {"texts": [], "messages": {"1.a": 1}}],
)  # fmt: skip
def test_what_is_no_history_is_none(content: Any) -> None:
    """The rest of the state file is of use without it."""
    history = AttemptHistory()
    history.take(content)
    assert not history
    assert history.note("1.a", "busy", NOW)


@pytest.mark.parametrize("wrong", ["²", "①", "५", "1²", "-1", "1_0", " 1"])
def test_numbers_that_are_none_end_no_route(wrong: str) -> None:
    """Whoever may write to the maildir could stop the daemon, with everybody's mail in flight."""
    history = AttemptHistory()
    lines = {"count": f"{wrong} 5 0", "time": f"1 {wrong} 0", "text": f"1 5 {wrong}"}
    history.take({"texts": ["busy"], "messages": lines})
    for key in lines:
        history.of(key)
        assert history.note(key, "busy", NOW)
        assert history.of(key)[1][:1] in ((), ((NOW, "busy"),))
    history.take({"texts": ["busy"], "messages": lines})
    history.forget_older(NOW)
    assert not history
