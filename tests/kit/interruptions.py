"""Interruptions of a thread at any of its steps, as the time limits of task queues make them."""

import ctypes
import sys
import threading


class TimeLimit(Exception):
    """The exception that strikes the thread."""


def strike(thread_id: int) -> None:
    """Raises TimeLimit in a thread that has not ended, at its next step in Python."""
    strikes = ctypes.pythonapi.PyThreadState_SetAsyncExc
    assert strikes(ctypes.c_ulong(thread_id), ctypes.py_object(TimeLimit)) <= 1


def struck_at_step(step, function) -> bool:
    """Calls a function and raises TimeLimit at exactly one of its steps.

    A step is an instruction of the client's own code or a line of the code that it calls. Python
    strikes a thread only at some of these instants, so this covers more than can happen.

    Returns:
        False if the function has fewer steps.
    """
    steps = 0

    def trace(frame, event, _):
        nonlocal steps
        ours = "credit_service/client" in frame.f_code.co_filename
        frame.f_trace_opcodes, frame.f_trace_lines = ours, not ours
        if event in ("opcode", "line"):
            steps += 1
            if steps == step:
                raise TimeLimit
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        function()
    except TimeLimit:
        return True
    finally:
        sys.settrace(before)
    return steps >= step


def struck_after(seconds, function) -> None:
    """Calls a function in a separate thread, which another strikes some time after its start."""
    running, ended = threading.Event(), threading.Event()

    def runs():
        try:
            running.set()
            function()
        except TimeLimit:
            pass
        finally:
            ended.set()

    thread = threading.Thread(target=runs)
    thread.start()
    running.wait()
    # Not by spinning: Python would keep the other threads of this process waiting for it.
    if not ended.wait(seconds):
        strike(thread.ident)
    thread.join()
