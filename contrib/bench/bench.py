"""The benchmarks' command line: which to run, how to print them, what the exit code says."""

import argparse
import json
import shlex
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from types import FrameType

import bench_cases
import bench_handoff
import bench_programs
import bench_receiver
import bench_serialmail
import bench_submission
import bench_thin
import bench_waiting
from bench_cases import Result, Setting, warm_up
from bench_harness import (
    BenchError,
    SkippedError,
    build,
    disk_place,
    environment,
    forwarder,
    machine,
    memory_place,
)

CASES = (
    bench_cases.CASES
    | bench_programs.CASES
    | bench_submission.CASES
    | bench_serialmail.CASES
    | bench_receiver.CASES
    | bench_handoff.CASES
    | bench_thin.CASES
    | bench_waiting.CASES
)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="run",
        description="Benchmarks of maildirqmtp. Exit 0: all targets reached"
        " (with --quick: all ran), 1: not.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument(
        "--quick", action="store_true", help="small numbers, once: only shows that all still runs"
    )
    parser.add_argument(
        "--forwarder",
        metavar="COMMAND",
        type=shlex.split,
        help="measure this instead; is run as COMMAND DIR SERVER",
    )
    options = parser.parse_args()
    for name in options.names:
        if name not in CASES:
            parser.error(f"no benchmark {name!r}; there are {', '.join(CASES)}")
    return options


def number(value: float, unit: str) -> str:
    """A time for people."""
    if unit == "s":
        return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.3f} s"
    return f"{value:.1f} {unit}"


def line(result: Result) -> str:
    """One line: name, our median, the reference's, the figure, its target, the verdict."""
    target = f"<= {result.target:g}"
    if result.stretch is not None:
        target += f", then {result.stretch:g}"
    parts = [
        f"{result.name:<12}",
        f"ours {number(median(result.ours), result.unit)}",
        f"reference {number(median(result.reference), result.unit)}",
        f"{result.figure:.2f}{result.figure_unit} ({target})",
    ]
    if result.peak_mb is not None:
        parts.append(f"peak {result.peak_mb:.1f} MB (< {result.peak_target_mb})")
    return "  ".join([*parts, "ok" if result.ok else "MISSED"])


def as_json(result: Result) -> dict[str, object]:
    """A result with all its samples."""
    return {
        **asdict(result),
        "median": median(result.ours),
        "reference_median": median(result.reference),
        "peak_mb": result.peak_mb,
        "status": "ok" if result.ok else "missed",
    }


def say(text: str, options: argparse.Namespace) -> None:
    """Print for people; with --json on stderr, because stdout is the document."""
    print(text, file=sys.stderr if options.json else sys.stdout, flush=True)


def run_case(name: str, setting: Setting, options: argparse.Namespace) -> dict[str, object]:
    """Run one benchmark and print its line; its outcome for the document."""
    try:
        result = CASES[name](setting)
    except SkippedError as error:
        say(f"{name:<12}  SKIPPED: {error}", options)
        return {"name": name, "status": "skipped", "reason": str(error)}
    except (BenchError, OSError) as error:
        say(f"{name:<12}  ERROR: {error}", options)
        return {"name": name, "status": "error", "reason": str(error)}
    say(line(result), options)
    for note in result.notes:
        say(f"{'':<12}  ({note})", options)
    return as_json(result)


def run_all(options: argparse.Namespace, scratch: Path) -> list[dict[str, object]]:
    """Run what was asked for."""
    tools = build(scratch)
    if tools.sink is None:
        print("NO C COMPILER: nearly everything is skipped. Install gcc.", file=sys.stderr)
    setting = Setting(
        forwarder=options.forwarder or forwarder(),
        env=environment(),
        tools=tools,
        scratch=scratch,
        run_id=f"{scratch.name}-maildirs",
        quick=options.quick,
    )
    try:
        warm_up(setting)
        return [run_case(name, setting, options) for name in options.names or CASES]
    finally:
        for place in (memory_place(), disk_place()):
            if place is not None:
                shutil.rmtree(place / setting.run_id, ignore_errors=True)


def on_term(signal_number: int, frame: FrameType | None) -> None:
    """Leave by way of the clean-up: some of the maildirs are in memory."""
    raise SystemExit(128 + signal_number)


def allowed(result: dict[str, object]) -> set[str]:
    """Without the programs of others, which are not ours to ship, there is nothing to compare."""
    others = bench_serialmail.CASES | bench_receiver.CASES
    return {"skipped"} if result["name"] in others else set()


def main() -> int:
    """Run the benchmarks; 0 if all reached their targets."""
    options = arguments()
    signal.signal(signal.SIGTERM, on_term)
    measured_on = machine()
    if options.forwarder:
        measured_on["forwarder"] = shlex.join(options.forwarder)
    for name, value in measured_on.items():
        say(f"# {name}: {value}", options)
    if float(measured_on["load"]) > 0.5:
        say("# NOTE: the machine is busy with something else; do not trust the figures", options)
    if options.quick:
        say("# --quick: these figures mean nothing, and the exit code ignores them", options)
    with tempfile.TemporaryDirectory(prefix="qmtp-bench-") as scratch:
        try:
            results = run_all(options, Path(scratch))
        except BenchError as error:
            say(f"ERROR: {error}", options)
            results = [{"name": "preparation", "status": "error", "reason": str(error)}]
    if options.json:
        print(json.dumps({"machine": measured_on, "results": results}, indent=2))
    good = {"ok", "missed", "skipped"} if options.quick else {"ok"}
    return 0 if all(result["status"] in good | allowed(result) for result in results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
