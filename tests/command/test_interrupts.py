"""Ctrl-C stops a run between two steps, and at once when it is pressed again."""

import signal
import threading

import pytest

from spectral_density.command.interrupts import BetweenSteps


def press():
    signal.raise_signal(signal.SIGINT)


def test_the_first_waits_for_the_end_of_the_step():
    with pytest.raises(KeyboardInterrupt), BetweenSteps() as interrupts:
        interrupts.check()
        press()
        waited = True
        interrupts.check("a step")
        pytest.fail("it was not raised")
    assert waited
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_does_not_wait():
    with pytest.raises(KeyboardInterrupt), BetweenSteps():
        press()
        press()
        pytest.fail("it was not raised")


def test_one_in_the_last_step_is_raised_at_its_end():
    with pytest.raises(KeyboardInterrupt), BetweenSteps():
        press()


def test_an_error_of_the_step_is_not_hidden():
    with pytest.raises(ZeroDivisionError), BetweenSteps():
        press()
        1 / 0  # noqa: B018


def test_what_others_made_of_it_is_left_alone():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with BetweenSteps() as interrupts:
            press()
            interrupts.check()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_threads_other_than_the_main_one_change_nothing():
    found = []

    def inside():
        with BetweenSteps():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert found == [signal.default_int_handler]
