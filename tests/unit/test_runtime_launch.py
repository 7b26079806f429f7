"""The launcher with workers that are five-line programs: who is blamed, what is kept, who is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from work_folder import until

import greentrain.runtime.launch as launch
from greentrain.errors import RunError
from greentrain.runtime.launch import WorkerCommand, WorkerFailedError, run_workers
from greentrain.runtime.lifeline import LAUNCHED
from greentrain.runtime.messages import Progress

FAIL = """
    import sys
    print("Error: {message}", file=sys.stderr)
    print("Hint: {hint}", file=sys.stderr)
    sys.exit({code})
"""
LOSE_PEERS = FAIL.format(message="x: lost its peers (Connection closed).", hint="Start again.", code=5)
WAIT = "import time; time.sleep(60)"


def ignore(progress: Progress) -> None:
    del progress


@pytest.fixture
def worker(tmp_path: Path) -> Callable[[str, str], WorkerCommand]:
    def make(device: str, program: str) -> WorkerCommand:
        argv = [sys.executable, "-c", textwrap.dedent(program)]
        return WorkerCommand(device=device, argv=argv, env={}, log=tmp_path / "logs" / f"{device}.log")

    return make


def failure(*commands: WorkerCommand) -> WorkerFailedError:
    with pytest.raises(WorkerFailedError) as caught:
        run_workers(commands, ignore)
    return caught.value


def test_progress_is_passed_on_and_other_output_is_not(
    worker: Callable[[str, str], WorkerCommand], tmp_path: Path
) -> None:
    program = r"""
        import os, sys
        os.write(1, b'{"step":1,"steps":2,"epoch":1,"loss":0.5,"elapsed_s":0.1}\n')
        os.write(1, b'a model that prints \xff\n{"step":"x"}\n')
        os.write(1, b'{"step":2,"steps":2,"epoch":1,"loss":0.4,"elapsed_s":0.2}\n')
        os.write(2, b'a remark \xff\n')
    """
    found: list[Progress] = []
    run_workers([worker("a", program), worker("b", "pass")], found.append)
    assert [progress.step for progress in found] == [1, 2]
    assert (tmp_path / "logs" / "a.log").read_text() == "a remark \N{REPLACEMENT CHARACTER}\n"
    assert (tmp_path / "logs" / "b.log").read_text() == ""


@pytest.mark.parametrize("code", [2, 3, 4, 5])
def test_the_exit_code_sentence_and_hint_are_passed_on(code: int, worker: Callable[[str, str], WorkerCommand]) -> None:
    error = failure(
        worker("a", FAIL.format(message="no such sensor.", hint="Plug it in.", code=code)), worker("b", WAIT)
    )
    assert (error.exit_code, error.device) == (code, "a")
    assert error.message == "the worker of a failed: no such sensor."
    assert error.hint == "Plug it in."


def test_a_worker_that_says_nothing(worker: Callable[[str, str], WorkerCommand], tmp_path: Path) -> None:
    error = failure(worker("a", "import sys; sys.exit(1)"))
    assert (error.exit_code, error.message) == (5, "the worker of a failed: exit status 1.")
    assert error.hint == f"Log: {tmp_path}/logs/a.log."


@pytest.mark.parametrize(
    ("program", "name"),
    [
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import sys; sys.exit(128 + 9)", "SIGKILL"),  # As a wrapper reports it.
    ],
)
def test_a_signal_is_named(program: str, name: str, worker: Callable[[str, str], WorkerCommand]) -> None:
    error = failure(worker("a", WAIT), worker("b", program))
    assert (error.exit_code, error.device, error.message) == (5, "b", f"the worker of b was killed ({name}).")


def test_the_one_that_failed_of_itself_is_blamed_even_when_it_ends_last(
    worker: Callable[[str, str], WorkerCommand],
) -> None:
    late = "import time; time.sleep(0.4)\n" + textwrap.dedent(FAIL.format(message="disk full.", hint="-", code=5))
    error = failure(worker("a", LOSE_PEERS), worker("b", late), worker("c", LOSE_PEERS))
    assert (error.device, error.message) == ("b", "the worker of b failed: disk full.")


def test_the_one_that_all_wait_for_is_blamed(
    worker: Callable[[str, str], WorkerCommand], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_SETTLE_S", 0.2)
    stopped = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    since_s = time.monotonic()
    error = failure(worker("a", LOSE_PEERS), worker("b", stopped))
    # It is stopped, yet it ends at once and not after the grace.
    assert time.monotonic() - since_s < 5
    assert (error.exit_code, error.device) == (5, "b")
    assert error.message == "the worker of b does not answer: x: lost its peers (Connection closed)."


def test_a_worker_that_does_not_want_to_end(
    worker: Callable[[str, str], WorkerCommand], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(launch, "_GRACE_S", 0.2)
    program = """
        import os, pathlib, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        pathlib.Path({path!r}).write_text(str(os.getpid()))
        time.sleep(60)
    """
    path = tmp_path / "pid"
    wait = f"import pathlib, sys, time\nwhile not pathlib.Path({str(path)!r}).exists(): time.sleep(0.02)\nsys.exit(2)"
    assert failure(worker("a", program.format(path=str(path))), worker("b", wait)).device == "b"
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


def test_a_log_that_cannot_be_written_is_named(worker: Callable[[str, str], WorkerCommand], tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(RunError, match=r"logs/a\.log: cannot be written"):
        run_workers([worker("a", WAIT)], ignore)


def test_a_command_that_does_not_exist_leaves_no_worker(
    worker: Callable[[str, str], WorkerCommand], tmp_path: Path
) -> None:
    path = tmp_path / "pid"
    absent = WorkerCommand(device="b", argv=["/nonexistent"], env={}, log=tmp_path / "b.log")
    with pytest.raises(RunError, match=r"the worker of b cannot be started \(No such file or directory: /nonexistent"):
        run_workers(
            [worker("a", f"import os, pathlib; pathlib.Path({str(path)!r}).write_text('')\n{WAIT}"), absent], ignore
        )
    assert (tmp_path / "logs" / "a.log").read_text() == ""


WORKER = """
import signal, sys, time
import greentrain.runtime.lifeline as lifeline
lifeline._GRACE_S = 0.1
def stop(number, frame):
    sys.exit(7)
signal.signal(signal.SIGTERM, {action})
lifeline.end_with_launcher()
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("action", "code"),
    [("stop", 7), ("signal.SIG_DFL", -signal.SIGTERM), ("signal.SIG_IGN", 5)],
    ids=["in order", "at once", "by force"],
)
def test_a_worker_ends_when_the_lifeline_breaks(action: str, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER.format(action=action)],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, LAUNCHED: "1"},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=20) == code
        assert process.stderr is not None
        assert process.stderr.read() == b"Error: the launcher is gone, this worker ends with it.\n"


def test_a_worker_behind_a_wrapper_ends_too() -> None:
    program = WORKER.format(action="stop")
    wrapper = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {program!r}]).returncode)"
    with subprocess.Popen(
        [sys.executable, "-c", wrapper],
        stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, env={**os.environ, LAUNCHED: "1"},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=20) == 7


def test_a_worker_that_a_person_started_does_not_watch_its_input() -> None:
    program = "from greentrain.runtime.lifeline import end_with_launcher; print(end_with_launcher())"
    environment = {name: value for name, value in os.environ.items() if name != LAUNCHED}
    done = subprocess.run(
        [sys.executable, "-c", program], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20,
        env=environment, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "False\n")


def test_an_interrupted_launcher_stops_all(worker: Callable[[str, str], WorkerCommand], tmp_path: Path) -> None:
    path = tmp_path / "pid"
    program = f"import os, pathlib, time; pathlib.Path({str(path)!r}).write_text(str(os.getpid())); time.sleep(60)"
    commands = [worker("a", program)]

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    one_line = """
        import pathlib, time
        while not pathlib.Path({path!r}).exists(): time.sleep(0.02)
        print('{{"step":1,"steps":2,"epoch":1,"loss":0.5,"elapsed_s":0.1}}', flush=True)
        time.sleep(60)
    """
    with pytest.raises(KeyboardInterrupt):
        run_workers([*commands, worker("b", one_line.format(path=str(path)))], interrupt)
    until(lambda: not Path(f"/proc/{path.read_text()}").exists(), within_s=5)
