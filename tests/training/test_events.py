"""events.jsonl: what is written is what is read, whatever the text and wherever the writing stopped."""

from pathlib import Path

from dspyc.training.events import EventLog, read_events


def test_any_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    text = "one\u2028two\x85three\nfour"
    EventLog(path).write(1, 0.5, loss=2.0, said=text)
    assert [event["said"] for event in read_events(path)] == [text]
    resumed = EventLog(path, resumed_step=1)
    assert (resumed.last_loss, [event["said"] for event in read_events(path)]) == (2.0, [text])


def test_a_line_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).write(1, 0.5, loss=2.0)
    path.write_text(path.read_text() + '{"step": 2, "lo')
    assert [event["step"] for event in read_events(path)] == [1]
