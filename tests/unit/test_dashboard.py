"""The dashboard: what one sees at 80x24 and at 200x50, and what keys make of it."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console
from snapshots import snapshot, status

from dynamos_ng.dashboard import keys, lines, screen
from dynamos_ng.dashboard.choice import CLASSES, EVENTS, FUNCTION, HELP, SORTS, Choice, press
from dynamos_ng.dashboard.screen import Frame
from dynamos_ng.dashboard.series import LENGTH, Series
from dynamos_ng.model import Adaptation, Confirmation, FunctionState, Snapshot, Variable

SMALL, LARGE = Frame(80, 24, "every 1 s"), Frame(200, 50, "every 1 s")
SIZES = pytest.mark.parametrize("frame", [SMALL, LARGE], ids=["80x24", "200x50"])


def shown(series: Series, choice: Choice = Choice(), frame: Frame = SMALL) -> list[str]:  # noqa: B008 it is frozen
    """Return what stands on the screen; whatever it is, it fits."""
    found, _ = screen.draw(series, choice, frame)
    assert len(found) == frame.height
    assert max(one.cell_len for one in found) <= frame.width
    assert all(letter.isprintable() for one in found for letter in one.plain)
    return [one.plain.rstrip() for one in found]


def line(found: list[str], begins: str) -> str:
    (one,) = (text for text in found if text.lstrip("> ").startswith(begins))
    return one


def pressed(choice: Choice, series: Series, *names: str, page: int = 10) -> Choice:
    for name in names:
        choice = press(choice, name, series, page)
    return choice


@pytest.fixture
def running() -> Series:
    return Series(snapshot(second) for second in range(1, 9))


@pytest.fixture
def crowd() -> Series:
    return Series(snapshot(second, functions=200) for second in range(1, 4))


@SIZES
def test_states_rates_and_calls_in_flight_can_be_read(running: Series, frame: Frame) -> None:
    found = shown(running, frame=frame)
    assert found[0].startswith("dynamos top  20")
    assert found[0].endswith("every 1 s")
    assert found[1] == "3 updates, 3 functions, 1047 calls/s, 4 in flight, probes by bcc"
    assert found[2] == "cost: dynamosd 1.2 % CPU, 61 MB; top 3.4 % CPU, 41 MB"
    assert line(found, "cmdline ").split()[:2] == ["cmdline", "[enabled]"]
    first = found.index(line(found, "cmdline_proc_show"))
    assert found[first].lstrip("> ").split()[:5] == ["cmdline_proc_show", "cmdline", "v1", "1000", "1"]
    assert found[first + 1].split()[:3] == ["v2", "7", "0"]
    assert "refused: still in use" in found[-2]


@SIZES
def test_an_update_that_gets_on_says_where_it_is_and_who_delays_it(running: Series, frame: Frame) -> None:
    found = shown(running, frame=replace(frame, height=50))
    assert "[enabling...]  2 functions; phase 1; phase 3 is wanted; TID 7" in line(found, "pipe ")
    assert "[disabling...]" in line(found, "mass ")
    assert "[pending]      waits for module dm_mod" in line(found, "fix ")


@pytest.mark.parametrize(
    ("confirmation", "said"),
    [
        (Confirmation("waiting", 42), "1 function; taken back in 42 s unless confirmed"),
        (Confirmation("reverting", 0, "in use"), "1 function; not confirmed in time: reverting"),
    ],
)
def test_what_is_to_be_confirmed_says_so(running: Series, confirmation: Confirmation, said: str) -> None:
    (update, *others) = snapshot(9).updates
    running.add(replace(snapshot(9), updates=(replace(update, confirmation=confirmation), *others)))
    assert said in line(shown(running), "cmdline ")


@SIZES
def test_numbers_stand_under_the_end_of_their_heading(running: Series, frame: Frame) -> None:
    found = shown(running, frame=frame)
    at = next(n for n, text in enumerate(found) if text.startswith("  function "))
    ends = [found[at].index(heading) + len(heading) for heading in ("calls/s", "in flight")]
    for text in found[at + 1 : at + 9]:
        for end in ends:
            assert re.fullmatch(r"[-\d.kMG]", text[end - 1]), text
            assert text[end : end + 1] == " ", text


def test_a_wide_screen_has_states_and_classes_of_each_edition(running: Series) -> None:
    found = shown(running, frame=LARGE)
    first = found.index(line(found, "cmdline_proc_show"))
    assert "[enabled]      0-3,8-255" in found[first]
    assert found[first + 1].split()[3:5] == ["4-7", "56"]


def test_a_counter_that_went_backwards_has_no_rate() -> None:
    series = Series([snapshot(9), replace(snapshot(5), uptime=9999.0)])
    found = shown(series)
    assert [text.split()[-2] for text in found if " v1 " in text and "pipe_read" in text] == ["-"]
    series.add(replace(snapshot(6), uptime=10000.0))
    assert re.search(r"pipe_read +pipe +v1 +40 ", "\n".join(shown(series)))


def test_a_reloaded_update_begins_anew_even_if_it_has_counted_further() -> None:
    old, new = snapshot(1), snapshot(9)
    (update, *others) = new.updates
    moved = replace(update.functions[0], function=replace(update.functions[0].function, handler=1))
    series = Series([old, replace(new, updates=(replace(update, functions=(moved,)), *others))])
    assert series.rate(("cmdline", "cmdline_proc_show", 1)) is None
    assert series.rate(("pipe", "pipe_read", 1)) == 40


def test_another_daemon_or_boot_has_no_rates_and_never_negative_ones() -> None:
    later = snapshot(9)
    assert later.daemon is not None
    series = Series([snapshot(8), replace(later, daemon=replace(later.daemon, pid=77))])
    assert series.share("daemon") is None
    assert series.share("watcher") == pytest.approx(0.034)
    series.add(replace(snapshot(10), uptime=3.0))
    assert series.share("watcher") is None
    assert series.rate(("cmdline", "cmdline_proc_show", 1)) is None


def test_what_is_kept_is_bounded_and_goes_with_its_update() -> None:
    series = Series(snapshot(second, functions=2) for second in range(3 * LENGTH))
    assert len(series.past(("mass", "many_001", 1))) == LENGTH
    series.add(snapshot(3 * LENGTH))
    assert series.past(("mass", "many_001", 1)) == ()


def test_one_moment_seen_twice_is_no_second_snapshot() -> None:
    series = Series([snapshot(1), snapshot(2)])
    series.add(replace(snapshot(2), quiescence=()))
    assert series.rate(("pipe", "pipe_read", 1)) == 40
    assert series.latest == replace(snapshot(2), quiescence=())


def test_sparklines_rise_with_the_calls() -> None:
    assert lines.spark([None, 0.0, 50.0, 100.0], 6) == "   ▁▅█"
    assert lines.spark([0.0, 0.0], 2) == "▁▁"
    assert lines.spark([1.0, 8.0], 2, ascii_only=True) == ".#"


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "-"), (0, "0"), (0.25, "0.2"), (12.34, "12.3"), (99999, "99999"), (123456, "123k"), (1.5e9, "1500M"),
     (-3, "-3"), (2.0**63, "9.2e+18")],
)  # fmt: skip
def test_numbers_fit_their_column(value: float | None, said: str) -> None:
    assert lines.number(value) == said


@SIZES
@pytest.mark.parametrize("view", [FUNCTION, CLASSES, EVENTS, HELP])
def test_every_view_fits_and_says_how_to_leave_it(running: Series, frame: Frame, view: str) -> None:
    found = shown(running, Choice(view=view, selected=("pipe", "pipe_read")), frame)
    assert "esc back" in found[-1]


@SIZES
def test_a_function_can_be_looked_into(running: Series, frame: Frame) -> None:
    found = shown(running, Choice(view=FUNCTION, selected=("pipe", "pipe_read")), frame)
    assert line(found, "pipe_read").startswith("pipe_read [enabled] of update pipe; 96 bytes at 0xffffffff810")
    assert line(found, "original").split()[:5] == ["original", "40", "320", "-", "2"]
    assert line(found, "v1").split()[:6] == ["v1", "40", "320", "3", "2", "0-3,8-255"]
    assert "! kprobe p:x is silent" in found
    assert "latency over 1 s, the probes' own included" in found
    assert "  calls of v1: 900  p50 270 µs  p95 270 µs  p99 270 µs, 1 % errors" in found
    assert "quiescence: in use; 60 stacks read, 250 µs in the stop" in found
    assert line(found, "101").split() == ["101", "rea?[31mder", "v1", "__schedule", "<", "schedule"]
    assert line(found, "5 ").split() == ["5", "copy_page", "<", "pipe_read_v1"]


def test_what_was_asked_of_the_update_on_top_is_not_told_of_one_below(running: Series) -> None:
    (_, update, *others) = snapshot(9).updates
    (one, *more) = update.functions
    above = replace(one, function=replace(one.function, update="dynamos_above", order=9))
    top = replace(update, name="above", functions=(above,))
    running.add(replace(snapshot(9), updates=(top, replace(update, functions=(one, *more)), *others)))
    assert "quiescence: in use" in "\n".join(shown(running, Choice(view=FUNCTION, selected=("above", "pipe_read"))))
    below = shown(running, Choice(view=FUNCTION, selected=("pipe", "pipe_read")))
    assert "update above is above this one: stacks and times are told there" in below
    assert line(below, "v1").split()[4] == "-"
    assert "quiescence" not in "\n".join(below)


def test_an_adaptation_handler_is_told_with_what_it_counted(running: Series) -> None:
    (update, *others) = snapshot(9).updates
    (one,) = update.functions
    adapted = replace(one, function=replace(one.function, adaptation=Adaptation(33, 4, 5)))
    running.add(replace(snapshot(9), updates=(replace(update, functions=(adapted,)), *others)))
    found = shown(running, Choice(view=FUNCTION, selected=("cmdline", "cmdline_proc_show")))
    assert "adaptation handler: BPF program 33" in found
    assert "  named an edition that there is not: 4; was passed by: 5" in found


def test_variables_and_shadow_data_are_told_with_their_update(running: Series) -> None:
    (update, *others) = snapshot(9).updates
    held, lost = Variable("a", 1, b"1", b"0", b"1"), Variable("b", 1, b"1", b"0", b"7")
    running.add(replace(snapshot(9), updates=(replace(update, variables=(held,), shadows=3), *others)))
    assert "1 variable written; 3 objects with shadow data" in line(shown(running, frame=LARGE), "cmdline ")
    running.add(replace(snapshot(10), updates=(replace(update, variables=(held, lost)), *others)))
    assert "1 of 2 variables hold another value" in line(shown(running, frame=LARGE), "cmdline ")


def test_a_function_that_was_unloaded_meanwhile_says_so(running: Series) -> None:
    running.add(Snapshot((), "bcc", uptime=6000.0))
    assert "not there any more" in shown(running, Choice(view=FUNCTION, selected=("pipe", "pipe_read")))[3]


def test_classes_are_told_with_who_has_them_and_what_they_get(running: Series) -> None:
    found = shown(running, Choice(view=CLASSES))
    assert found[4:12] == [
        "0         every other process", "          gets v1 of everything",
        "1         2 processes: bash 143, less 144", "          gets v1 of everything",
        "2-3,8-255  nobody", "          gets v1 of everything",
        "4         exec of less", "          gets cmdline_proc_show v2, else v1",
    ]  # fmt: skip


@SIZES
def test_200_functions_can_be_gone_through(crowd: Series, frame: Frame) -> None:
    choice = Choice(sort="name")
    seen = set()
    for _ in range(210):
        found, choice = screen.draw(crowd, choice, frame)
        (mark,) = (one.plain for one in found if one.plain.startswith("> "))
        seen.add(mark.split()[1])
        choice = press(choice, "down", crowd, screen.page(frame))
    assert len(seen) == 203
    assert mark.split()[1] == "pipe_read" or mark.split()[1] == "pipe_write" or ":" in mark
    for _ in range(210):
        found, choice = screen.draw(crowd, press(choice, "up", crowd, 1), frame)
    assert choice.top == 0


def test_filtering_finds_one_of_200_and_is_told(crowd: Series) -> None:
    choice = pressed(Choice(), crowd, "/", *"MANY_01", "x", "backspace")
    assert "filter: MANY_01_   10 functions; enter keeps it, esc leaves it" in shown(crowd, choice)[-1]
    choice = pressed(choice, crowd, "9", "enter")
    found = shown(crowd, choice)
    assert [text.split()[1] for text in found if text.startswith("> ")] == ["many_019"]
    assert "filter: MANY_019   1 function" in found
    assert pressed(choice, crowd, "escape").filter == ""
    assert pressed(choice, crowd, "/", "z", "escape").filter == "MANY_019"
    assert "there is no such function" in "\n".join(shown(crowd, replace(choice, filter="zzz")))
    assert pressed(replace(choice, filter="zzz"), crowd, "down", "enter").view != FUNCTION


def test_the_busiest_are_on_top_and_order_can_be_turned(crowd: Series) -> None:
    def top(choice: Choice) -> str:
        found = shown(crowd, choice)
        at = next(n for n, text in enumerate(found) if text.startswith("  function "))
        return found[at + 1].lstrip("> ").split()[0]

    assert top(Choice()) == "cmdline_proc_show"
    assert [top(Choice(sort=sort)) for sort in SORTS] == ["cmdline_proc_show", "pipe_read", "cmdline_proc_show"] * 1 + [
        "cmdline_proc_show"
    ]
    assert top(pressed(Choice(sort="name"), crowd, "r")) == "ext4:pipe_write"
    assert pressed(Choice(), crowd, "s", "s", "s", "s").sort == SORTS[0]


def test_the_mark_stays_on_its_function_when_others_come_and_order_changes(crowd: Series) -> None:
    choice = pressed(Choice(), crowd, "down", "down", "down")
    name = next(text.split()[1] for text in shown(crowd, choice) if text.startswith("> "))
    for key in ("s", "s", "r"):
        choice = pressed(choice, crowd, key)
        _, choice = screen.draw(crowd, choice, SMALL)
        assert [text.split()[1] for text in shown(crowd, choice) if text.startswith("> ")] == [name]


def test_keys_lead_into_views_and_back(running: Series) -> None:
    assert pressed(Choice(), running, "c").view == CLASSES
    assert pressed(Choice(), running, "c", "c").view == Choice().view
    assert pressed(Choice(), running, "h", "escape").view == Choice().view
    inside = pressed(Choice(), running, "down", "enter")
    assert (inside.view, inside.selected) == (FUNCTION, ("pipe", "pipe_read"))
    assert pressed(inside, running, "s").sampling
    assert not pressed(inside, running, "s", "escape").sampling
    assert pressed(inside, running, "l").timing
    assert not pressed(inside, running, "l", "l").timing
    assert not pressed(inside, running, "l", "escape").timing
    assert pressed(Choice(), running, " ").paused
    assert not pressed(Choice(), running, " ", " ").paused
    assert pressed(Choice(), running, "q").ended
    assert not pressed(Choice(), running, "/", "q").ended


def test_scrolling_ends_at_the_ends(running: Series) -> None:
    _, choice = screen.draw(running, pressed(Choice(view=HELP), running, "end"), Frame(80, 12))
    assert shown(running, choice, Frame(80, 12))[-2].startswith("original ")
    tall = Choice(view=CLASSES)
    _, choice = screen.draw(running, pressed(tall, running, "end"), Frame(80, 10))
    assert shown(running, choice, Frame(80, 10))[-2] == "          gets cmdline_proc_show v2, else v1"
    assert pressed(choice, running, "home").top == 0


def test_keys_are_known_by_what_terminals_send() -> None:
    sent = b"q\x1b[A\x1bOB\x1b[5~\x1b[6~\x1b[1~/\r\x7f\x1b \x1b[24~\xc3\xa9\x03"
    assert keys.names(sent) == [
        "q", "up", "down", "page up", "page down", "home", "/", "enter", "backspace", "escape", " ", "q",
    ]  # fmt: skip


def test_trouble_and_pause_are_told_on_the_screen(running: Series) -> None:
    trouble = "no daemon answers on /run/dynamos/control.sock: start dynamosd; 99 s old"
    found = shown(running, Choice(paused=True), replace(SMALL, trouble=trouble))
    assert found[3] == f"! {trouble}"
    assert found[0].endswith("PAUSED  every 1 s")
    assert shown(Series(), frame=replace(SMALL, trouble="x"))[1] == "! x"


@pytest.mark.parametrize(("width", "height"), [(80, 5), (20, 24), (1, 1), (40, 8), (500, 200)])
def test_any_size_is_borne(crowd: Series, width: int, height: int) -> None:
    for view in ("functions", FUNCTION, CLASSES, EVENTS, HELP):
        shown(crowd, Choice(view=view), Frame(width, height))


def test_without_colour_states_and_the_mark_are_still_there(running: Series, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, height=24)
    for one in screen.draw(running, Choice(), SMALL)[0]:
        console.print(one)
    text = output.getvalue()
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text), "a colour"
    assert "[enabled]" in text
    assert "> " in text


@pytest.mark.parametrize("width", [80, 200])
def test_once_tells_everything_line_by_line(crowd: Series, width: int) -> None:
    found = [one.plain for one in screen.once(crowd, width)]
    assert max(map(len, found)) <= width
    assert all(any(f"many_{n:03} " in text for text in found) for n in range(200))
    assert "pipe_read of pipe: kprobe p:x is silent" in found
    assert not any(text.startswith(">") or text != text.rstrip() for text in found)
    assert "refused: still in use" in found[-1]


def test_nothing_loaded_is_a_screen_too() -> None:
    series = Series([Snapshot((), "libbpf", uptime=1.0), Snapshot((), "libbpf", uptime=2.0)])
    found = shown(series)
    assert "0 updates, 0 functions, 0 calls/s, 0 in flight, probes by libbpf" in found
    assert "  no update is loaded" in found
    assert "  there is no such function" in found
    assert pressed(Choice(), series, "enter", "down").view == Choice().view


def test_a_state_is_told_by_its_word() -> None:
    for state in FunctionState:
        text = "\n".join(shown(Series([snapshot(1, state=state)]), frame=LARGE))
        assert state.word in text
    assert status("f", (1,)).uses[0].in_flight == 0
