"""Run folders as people and tools read them: beside a compile that is going on, and without changing anything.

run = read_run("triage.run")
run.summary()["calls"]                 # {"teacher": {"calls": 300, "tokens": 81234, "usd": 0.05}}
differences(run, other)                # which calls, traces and scores are not the same
"""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import LedgerError
from ..files import home
from .ledger import advice, check_schema


@dataclass(frozen=True)
class RunRecord:
    """The ledger in a run folder, opened for reading each time it is asked.

    Raises:
        LedgerError: By every method: the ledger is damaged, locked or of another version.
    """

    run_dir: Path

    def summary(self) -> dict[str, Any]:
        """Calls, tokens and USD by role; traces, their failures and mean score by role; candidates; when it was at work."""
        with self._reading() as db:
            calls = {
                role: {"calls": calls, "tokens": tokens, "usd": usd}
                for role, calls, tokens, usd in db.execute("SELECT role, calls, tokens, usd FROM spent ORDER BY role")
            }
            query = "SELECT role, COUNT(*), COUNT(error), AVG(score) FROM traces GROUP BY role ORDER BY role"
            traces = {
                role: {"traces": count, "failed": failed, "score": score}
                for role, count, failed, score in db.execute(query)
            }
            (candidates,) = db.execute("SELECT COUNT(*) FROM candidates").fetchone()
            first, last = db.execute(
                "SELECT MIN(at), MAX(at) FROM (SELECT at FROM events UNION ALL SELECT at FROM calls)"
            ).fetchone()
            finished = db.execute("SELECT record FROM events WHERE kind='report' ORDER BY at DESC LIMIT 1").fetchone()
        return {
            "run_dir": str(self.run_dir),
            "began": first,
            "last": last,
            "finished": finished is not None,
            "calls": calls,
            "traces": traces,
            "candidates": candidates,
            "report": json.loads(finished[0]) if finished else None,
        }

    def failures(self) -> list[dict[str, Any]]:
        """Why runs failed, the most frequent reason first: `role`, `error` and how many `traces`."""
        query = """
            SELECT role, error, COUNT(*) AS traces FROM traces WHERE error IS NOT NULL
            GROUP BY role, error ORDER BY traces DESC, role, error
        """
        with self._reading() as db:
            rows = db.execute(query).fetchall()
        return [{"role": role, "error": error, "traces": count} for role, error, count in rows]

    def events(self) -> list[dict[str, Any]]:
        """What happened, oldest first."""
        with self._reading() as db:
            rows = db.execute("SELECT at, kind, record FROM events ORDER BY at").fetchall()
        return [{"at": at, "kind": kind, **json.loads(record)} for at, kind, record in rows]

    def candidates(self) -> list[dict[str, Any]]:
        """The programs that a search considered, best first."""
        with self._reading() as db:
            rows = db.execute("SELECT id, score, record FROM candidates ORDER BY score DESC, at").fetchall()
        return [{"id": id, "score": score, **json.loads(record)} for id, score, record in rows]

    def traces(self, role: str | None = None) -> Iterator[dict[str, Any]]:
        """The finished runs as records, oldest first, each call whole: its model, messages, replies, usage, cost, seconds."""
        with self._reading() as db:
            query = "SELECT record FROM traces WHERE role=? OR ? IS NULL ORDER BY at"
            for (text,) in db.execute(query, (role, role)):
                record = json.loads(text)
                for step in record["steps"]:
                    step["calls"] = [self._call(db, record, request, nth) for request, nth in step["calls"]]
                yield record

    def scores(self) -> dict[str, tuple[str, float | None, str | None]]:
        """The role, score and error of every trace, by its id."""
        with self._reading() as db:
            return {
                id: (role, score, error)
                for id, role, score, error in db.execute("SELECT id, role, score, error FROM traces")
            }

    def call_keys(self) -> set[tuple[str, str, int, str]]:
        """What every call is known by: its example, request, occurrence and role."""
        with self._reading() as db:
            return set(db.execute("SELECT example, request, nth, role FROM calls"))

    def _call(self, db: sqlite3.Connection, trace: dict[str, Any], request: str, nth: int) -> dict[str, Any]:
        query = "SELECT model, messages, replies, facts FROM calls WHERE example=? AND request=? AND nth=? AND role=?"
        row = db.execute(query, (trace["asked"], request, nth, trace["role"])).fetchone()
        if row is None:
            raise LedgerError(
                f"A call of trace {trace['id']} is missing in {self.run_dir}.", hint="Its ledger is damaged."
            )
        sent = [db.execute("SELECT body FROM messages WHERE id=?", (id,)).fetchone()[0] for id in json.loads(row[1])]
        return {
            "model": row[0],
            "messages": [json.loads(body) for body in sent],
            "replies": json.loads(row[2]),
            **json.loads(row[3]),
            "request": request,
            "nth": nth,
        }

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        try:
            uri = f"{(self.run_dir / 'ledger.sqlite').resolve().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True)) as db:
                if not check_schema(db, self.run_dir):
                    raise LedgerError(
                        f"The ledger in {self.run_dir} is empty.", hint="Its compile was stopped at once."
                    )
                yield db
        except sqlite3.Error as error:
            raise LedgerError(f"Could not read the ledger in {self.run_dir}: {error}.", hint=advice(error)) from error


def read_run(run: str | PathLike[str]) -> RunRecord:
    """The record of a run: a name that `dspyc runs list` shows, or a folder.

    Raises:
        LedgerError: There is none.
    """
    for run_dir in (home() / "runs" / run, Path(run)):
        if (run_dir / "ledger.sqlite").is_file():
            return RunRecord(run_dir)
    raise LedgerError(
        f"There is no run at {Path(run)}.", hint="`dspyc runs list` shows the runs that are kept; a folder works too."
    )


def differences(one: RunRecord, other: RunRecord) -> dict[str, Any]:
    """What two runs have in common and what only one has, by content, and the traces whose outcome differs."""
    first, second = one.scores(), other.scores()
    calls = one.call_keys(), other.call_keys()
    changed = [
        {
            "trace": id,
            "role": first[id][0],
            "scores": [first[id][1], second[id][1]],
            "errors": [first[id][2], second[id][2]],
        }
        for id in sorted(first.keys() & second.keys())
        if first[id] != second[id]
    ]
    return {
        "calls": {
            "both": len(calls[0] & calls[1]),
            "first": len(calls[0] - calls[1]),
            "second": len(calls[1] - calls[0]),
        },
        "traces": {
            "both": len(first.keys() & second.keys()),
            "first": len(first.keys() - second.keys()),
            "second": len(second.keys() - first.keys()),
        },
        "changed": changed,
    }
