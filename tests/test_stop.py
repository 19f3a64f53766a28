"""Being asked to stop."""

from __future__ import annotations

import signal
import threading

import pytest

from posttrain.stop import Stop, Stopped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_nothing_breaks_off(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Stop() as stop:
        assert not stop.asked
        signal.raise_signal(number)
        assert stop.asked and stop.signal == number
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_ends_it_at_once() -> None:
    with Stop() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # an impatient supervisor is still asked to wait
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_handlers_come_back_after_an_error() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped) as stopped, Stop():
        raise Stopped(15)
    assert stopped.value.signal == 15
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_outside_the_main_thread_it_does_nothing() -> None:
    before, inside = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Stop() as stop:
            inside.append((signal.getsignal(signal.SIGINT), stop.asked))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert inside == [(before, False)]
