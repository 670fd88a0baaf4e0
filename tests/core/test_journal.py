from __future__ import annotations

import threading

from magmerge.core.journal import listening, note


def test_a_note_goes_to_the_innermost_listener() -> None:
    note("nobody hears this")
    with listening() as outer:
        note("first")
        with listening() as inner:
            note("second")
        note("third")
    note("nor this")
    assert outer == ["first", "third"]
    assert inner == ["second"]


def test_listeners_of_different_threads_hear_only_their_own() -> None:
    heard: dict[int, list[str]] = {}
    together = threading.Barrier(2)

    def work(number: int) -> None:
        with listening() as notes:
            together.wait()
            note(f"from {number}")
            together.wait()
        heard[number] = notes

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert heard == {0: ["from 0"], 1: ["from 1"]}


def test_a_listener_closes_after_an_error() -> None:
    with listening() as outer:
        try:
            with listening():
                raise ValueError
        except ValueError:
            note("after")
    assert outer == ["after"]
