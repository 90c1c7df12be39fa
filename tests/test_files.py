"""What stands on the disk when a process is killed while it writes, at every instant: the old or the new, and whole."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dspyc.files import clear_unfinished, numbered_lines, settle, whole_folder, write_bytes

REPOSITORY = Path(__file__).parents[1]

DYING = """
import sys
from pathlib import Path
from dspyc.files import whole_folder
from tests.dying import deaths

root, how, old = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "old"

def write(folder, text):
    for name in ("a", "b/c"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

def prepare(moment):
    path = root / str(moment) / "thing"
    path.parent.mkdir()
    if old:
        path.mkdir()
        write(path, "old")
    return path

def replace(path):
    with whole_folder(path) as folder:
        write(folder, "new")

for path in deaths(prepare, replace, ("open", "os.", "shutil.", "sqlite3."), how):
    pass
"""


def state(path: Path) -> set[str]:
    """What the files say; a whole folder has two, of one mind."""
    files = [p for p in path.rglob("*") if p.is_file()]
    assert len(files) in (0, 2)
    return {p.read_text() for p in files}


def killed(root: Path, how: str, old: str) -> list[Path]:
    """The place of a folder, for every moment at which its writer was killed."""
    command = [sys.executable, "-c", DYING, str(root), how, old]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [folder / "thing" for folder in root.iterdir()]


@pytest.mark.parametrize("how", ["kill", "interrupt"])
@pytest.mark.parametrize("old", ["old", "nothing"])
@pytest.mark.parametrize("next_comer", ["reader", "writer", "folder"])
def test_a_folder_is_whole_wherever_its_writer_dies(tmp_path: Path, how: str, old: str, next_comer: str) -> None:
    places = killed(tmp_path, how, old)
    assert len(places) > 25
    missing = sum(not path.exists() for path in places)
    assert (missing > 0) == (how == "kill" or old == "nothing")  # a kill between the renames; an interrupt puts it back
    found = []
    for path in places:
        if next_comer == "reader":
            settle(path)
        elif next_comer == "folder":
            clear_unfinished(path.parent)
        else:
            with pytest.raises(ValueError, match="not this time"), whole_folder(path):
                raise ValueError("not this time")
        found.append("".join(sorted(state(path))))
        assert list(path.parent.iterdir()) == ([path] if found[-1] else [])
    assert set(found) == {"new", old if old == "old" else ""}


def test_what_stands_after_each_rename(tmp_path: Path) -> None:
    """The states that a kill leaves, made by hand."""
    path, aside = tmp_path / "thing", tmp_path / ".writing-0123abcd-thing"
    for name, text in (("old", "old"), ("new", "new")):
        (aside / name / "b").mkdir(parents=True)
        (aside / name / "a").write_text(text)
        (aside / name / "b" / "c").write_text(text)
    settle(path)
    assert state(path) == {"old"}
    (aside / "old").mkdir(parents=True)
    (aside / "old" / "a").write_text("older")
    settle(path)
    assert (state(path), list(tmp_path.iterdir())) == ({"old"}, [path])


def test_a_living_writer_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "thing"
    with whole_folder(path) as folder:
        (folder / "a").write_text("new")
        settle(path)
        clear_unfinished(tmp_path)
        (folder / "b").write_text("new")
    assert state(path) == {"new"}
    assert list(tmp_path.iterdir()) == [path]


def test_many_writers_of_one_place(tmp_path: Path) -> None:
    path = tmp_path / "thing"

    def write(text: str) -> None:
        for _ in range(10):
            with whole_folder(path) as folder:
                for name in ("a", "b"):
                    (folder / name).write_text(text)

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write, str(n)) for n in range(4)]
        while not all(writer.done() for writer in writers):
            settle(path)
    for writer in writers:
        writer.result()
    assert len(state(path)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_with_anything_in_it(tmp_path: Path) -> None:
    for name in ("[a]*", "old-thing", "0123abcd-thing"):
        (tmp_path / f".writing-89abcdef-{name}" / "old").mkdir(parents=True)
    settle(tmp_path / "thing")
    assert not (tmp_path / "thing").exists()
    settle(tmp_path / "[a]*")
    assert (tmp_path / "[a]*").is_dir()


def test_a_file_that_is_not_written_leaves_the_old_one(tmp_path: Path) -> None:
    write_bytes(tmp_path / "file", b"old")
    code = "import sys; from pathlib import Path; from dspyc.files import write_bytes; " + LIMIT
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], capture_output=True, text=True)
    assert "too large" in done.stderr
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


LIMIT = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
write_bytes(Path(sys.argv[1]), b"x" * 1000)
"""


def test_a_line_ends_where_it_was_ended() -> None:
    rows = [{"a": f"one{end}two"} for end in "\u2028\u2029\x85\x0b\x0c\x1c"]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    assert [(number, json.loads(line)) for number, line in numbered_lines(text)] == list(enumerate(rows, start=1))
    assert list(numbered_lines('{"a": 1}\r\n\r\n{"b": 2}')) == [(1, '{"a": 1}\r'), (3, '{"b": 2}')]
