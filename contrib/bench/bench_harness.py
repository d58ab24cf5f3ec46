"""What every benchmark needs: timed processes, the sink, the proxy, compiled tools, places."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from delay_link import FAR

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
TIMEOUT_S = 300  # a process that takes longer is killed, and that is an error
FAR_PORT = 6_209  # of the sink behind a delay link: a server is remembered with its port
C_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra")


class BenchError(Exception):
    """Something came out wrong, so that there is no figure."""


class SkippedError(Exception):
    """This machine lacks what the benchmark needs."""


def needs_watchdog() -> None:
    """Raise `SkippedError` if this interpreter has no watchdog: mail would wait for a rescan."""
    if find_spec("watchdog") is None:
        raise SkippedError(f"{sys.executable} has no watchdog; run this with one that has it")


@dataclass(frozen=True, slots=True)
class Run:
    """One process from its start to its end."""

    wall_s: float
    peak_kib: int
    exit_code: int


@dataclass(frozen=True, slots=True)
class Totals:
    """What the sink counted."""

    packages: int
    recipients: int
    message_bytes: int
    connections: int
    cut: int
    broken: int


@dataclass(frozen=True, slots=True)
class Link:
    """The way from a client to the sink: what each is started by, and the sink's host and port."""

    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 0


LOOPBACK = Link()


def timed(argv: list[str], env: dict[str, str], log: Path, expected_exit: int = 0) -> Run:
    """Run a process and measure it; its output goes to the log.

    Peak memory includes what this process had when it started the child, so a benchmark must not
    hold much itself.
    """
    with log.open("wb") as output:
        start = time.perf_counter()
        process = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        killer = threading.Timer(TIMEOUT_S, os.kill, (process.pid, signal.SIGKILL))
        killer.daemon = True
        killer.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
            wall_s = time.perf_counter() - start
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            killer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected_exit:
        raise BenchError(
            f"{' '.join(argv)}: exit {process.returncode}, expected {expected_exit}\n{tail(log)}"
        )
    return Run(wall_s, usage.ru_maxrss, process.returncode)


def tail(log: Path, max_bytes: int = 2000) -> str:
    """The end of a log, to show with an error."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - max_bytes))
        return file.read().decode(errors="replace")


@dataclass(frozen=True, slots=True)
class Tools:
    """The compiled programs; none without a C compiler."""

    sink: Path | None
    reference: Path | None


def build(into: Path) -> Tools:
    """Compile the C programs, if there is a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return Tools(None, None)
    built = []
    for name in ("sink", "reference"):
        target = into / name
        argv = [compiler, *C_FLAGS, "-o", str(target), str(HERE / f"{name}.c")]
        done = subprocess.run(argv, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise BenchError(f"{' '.join(argv)} failed:\n{done.stderr}")
        built.append(target)
    return Tools(*built)


class Sink:
    """A benchmark server, running: it prints its port, and on SIGTERM what it counted."""

    def __init__(self, argv: list[str]) -> None:
        self.process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def stop(self) -> Totals:
        """End it and return what it counted."""
        self.process.terminate()
        _, counted = self.process.communicate(timeout=60)
        values = dict(item.split("=") for item in counted.split())
        return Totals(**{name: int(value) for name, value in values.items()})


@contextmanager
def sink(program: Path | None, answer: str = "K", link: Link = LOOPBACK) -> Iterator[Sink]:
    """A sink that ends with the block, whatever happens."""
    if program is None:
        raise SkippedError("no C compiler (cc or gcc), so no server to send to")
    listen = () if link is LOOPBACK else ("-a", "-p", str(link.port))
    with running([*link.far, str(program), "-r", answer, *listen]) as server:
        yield server


@contextmanager
def slow_server(answer_ms: float) -> Iterator[Sink]:
    """A server that takes its time over each answer."""
    with running([sys.executable, str(HERE / "slow_server.py"), str(answer_ms)]) as server:
        yield server


@contextmanager
def running(argv: list[str]) -> Iterator[Sink]:
    """A server that ends with the block, whatever happens."""
    server = Sink(argv)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


@contextmanager
def delay_link(one_way_ms: float) -> Iterator[Link]:
    """A link between two network namespaces, which delays every packet."""
    if os.geteuid() != 0 or not os.access("/dev/net/tun", os.W_OK):
        raise SkippedError("needs root and /dev/net/tun, for a link that delays connect(), too")
    for program in ("ip", "nsenter", "sysctl", "unshare"):
        if shutil.which(program) is None:
            raise SkippedError(f"there is no {program}")
    with subprocess.Popen(
        [sys.executable, str(HERE / "delay_link.py"), str(one_way_ms)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:  # ends with its standard input
        assert process.stdout is not None
        near, far = process.stdout.readline().split()
        yield Link(("nsenter", "-t", near, "-n"), ("nsenter", "-t", far, "-n"), FAR, FAR_PORT)


@contextmanager
def delay_proxy(server_port: int, one_way_ms: float) -> Iterator[int]:
    """The delay proxy in front of a server; gives its port."""
    program = [sys.executable, str(HERE / "delay_proxy.py")]
    process = subprocess.Popen(
        [*program, str(server_port), str(one_way_ms)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def forwarder() -> list[str]:
    """How maildirqmtp is started: the console script of this interpreter, else the module.

    The script is handed to the interpreter, so that no shell stands between, whatever its first
    line says.
    """
    script = Path(sys.executable).with_name("maildirqmtp")
    if script.is_file():
        return [sys.executable, str(script)]
    return [sys.executable, "-m", "maildirqmtp"]


def environment() -> dict[str, str]:
    """The environment of every measured process: this checkout first, byte code kept."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    before = env.get("PYTHONPATH")
    env["PYTHONPATH"] = f"{CHECKOUT}{os.pathsep}{before}" if before else str(CHECKOUT)
    return env


def file_system(path: Path) -> str:
    """The type of the file system that a path is on."""
    best, kind = "", "unknown"
    resolved = str(path.resolve())
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        mount = left.split()[4]
        inside = resolved == mount or resolved.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, right.split()[0]
    return kind


def memory_place() -> Path | None:
    """A directory on tmpfs, or None."""
    place = Path("/dev/shm")
    usable = place.is_dir() and os.access(place, os.W_OK) and file_system(place) == "tmpfs"
    return place if usable else None


def disk_place() -> Path | None:
    """A directory on a file system that is not in memory, or None."""
    for name in (os.environ.get("TMPDIR"), "/var/tmp", "/tmp"):
        place = Path(name) if name else None
        if (
            place is not None
            and place.is_dir()
            and os.access(place, os.W_OK)
            and file_system(place) not in ("tmpfs", "ramfs")
        ):
            return place
    return None


def machine() -> dict[str, str]:
    """What the figures were measured on."""
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    memory, disk = memory_place(), disk_place()
    return {
        "cpu": model,
        "cores": str(len(os.sched_getaffinity(0))),
        "load": f"{os.getloadavg()[0]:.2f}",
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}"
        f" ({sys.executable})",
        "tmpfs": str(memory) if memory else "none",
        "disk": f"{disk} ({file_system(disk)})" if disk else "none",
        "forwarder": " ".join(forwarder()),
        "checkout": str(CHECKOUT),
    }
