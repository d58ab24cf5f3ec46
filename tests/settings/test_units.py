"""Times, sizes and windows as people write them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maildirqmtp.errors import ConfigError
from maildirqmtp.settings.units import parse_bytes, parse_seconds, parse_window

SECONDS = [
    ("0", 0.0), ("60", 60.0), ("0.5", 0.5), (".5", 0.5), ("90s", 90.0), ("1.5s", 1.5),
    ("5m", 300.0), ("2h", 7_200.0), ("14d", 1_209_600.0), ("1w", 604_800.0),
    ("36500d", 3_153_600_000.0),
]  # fmt: skip
BYTES = [
    ("0", 0), ("1", 1), ("1000", 1_000), ("64k", 65_536), ("64K", 65_536), ("32m", 33_554_432),
    ("32M", 33_554_432), ("1g", 1_073_741_824), ("1G", 1_073_741_824),
    ("999999999999999", 999_999_999_999_999),
]  # fmt: skip
WINDOWS = [
    ("1", (1, 33_554_432)), ("4096", (4_096, 33_554_432)), ("4096,32M", (4_096, 33_554_432)),
    ("10,1", (10, 1)), ("999999999,1G", (999_999_999, 1_073_741_824)),
]  # fmt: skip

BAD_SECONDS = ["", "s", ".", "..5", "1.2.3", "-1", "+1", "1e5", "5 m", " 5", "5M", "5x", "m5",
               "inf", "nan", "\u0665", "\u00b2", "1_0", "1ss", "1234567890123", "1\n"]  # fmt: skip
BAD_BYTES = ["", "k", "-1", "+1", "1.5M", "1 k", "1kb", "1t", "0x10", "\u0661", "\u00b2", "1_0",
             "1000000000000000", "1\n"]  # fmt: skip
BAD_WINDOWS = ["", "0", ",", ",1M", "-1", "+1", "x", "1.5", "1000000000", "4096,", "4096,0",
               "4096,0k", "4096,x", "4096,1M,2", "4096;1M", "\u0661", "1, 1M"]  # fmt: skip


@pytest.mark.parametrize("text", ["36501d", "999999999999", "999999999999w"])
def test_endless_times(text: str) -> None:
    """What no system call can wait for is refused before it is tried."""
    with pytest.raises(ConfigError, match=r"--rescan: .* is more than 100 years"):
        parse_seconds(text, "--rescan")


@pytest.mark.parametrize(("text", "seconds"), SECONDS)
def test_times(text: str, seconds: float) -> None:
    """A unit that counts wrongly bounces mail after 14 minutes instead of 14 days."""
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize(("text", "size"), BYTES)
def test_sizes(text: str, size: int) -> None:
    """Powers of 1,024, in either case."""
    assert parse_bytes(text) == size


@pytest.mark.parametrize(("text", "window"), WINDOWS)
def test_windows(text: str, window: tuple[int, int]) -> None:
    """Messages, and bytes where they are given."""
    assert parse_window(text) == window


@pytest.mark.parametrize(
    ("parse", "where", "text"),
    [(parse_seconds, "time", text) for text in BAD_SECONDS]
    + [(parse_bytes, "size", text) for text in BAD_BYTES]
    + [(parse_window, "window", text) for text in BAD_WINDOWS],
)
def test_what_cannot_be_understood_is_named(parse: object, where: str, text: str) -> None:
    """The option and the text are in the error, so that it can be found and mended."""
    assert callable(parse)
    shown = {repr(text), repr(text.partition(",")[2])}  # of a window, perhaps only its size
    for place in (where, "--option"):
        with pytest.raises(ConfigError) as raised:
            parse(text) if place == where else parse(text, place)
        message = str(raised.value)
        assert message.startswith(f"{place}: ")
        assert any(message.endswith(f"not {part}") for part in shown)


@settings(deadline=None)
@given(st.text(max_size=12) | st.text("[]:/.0123456789abf%-@qmtp", max_size=16))
def test_no_text_raises_anything_but_a_config_error(text: str) -> None:
    """A typo must not end in a traceback."""
    for parse in (parse_seconds, parse_bytes, parse_window):
        try:
            value = parse(text)
        except ConfigError:
            continue
        assert min(value if isinstance(value, tuple) else (value,)) >= 0
