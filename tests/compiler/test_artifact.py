"""Artifacts: what is saved, what comes back in another process, and what a changed byte does."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest

import dspyc
from dspyc.compiler import verify
from dspyc.compiler.checksums import write_sums
from dspyc.compiler.readme import made_from
from dspyc.errors import ArtifactError
from dspyc.models import ConstrainedLM
from dspyc.signatures import adapt
from dspyc.training import TrainingConfig, train
from tests.optimizers import desk
from tests.providers.compiling import Elsewhere
from tests.training import small

ANSWER = """
import json, sys
import dspyc
program = dspyc.load(sys.argv[1])
print(json.dumps([program(thing=thing).toDict() for thing in json.load(sys.stdin)]))
"""


def compiled(run_dir: Path, adapter: dspy.Adapter | None = None, **train_kwargs: Any) -> Any:
    """One predictor, trained until it answers in its format."""
    student = dspy.Predict("thing -> colour")
    student.set_lm(dspyc.LocalLM("dspyc/tiny", max_tokens=16, cache=False))
    examples = [
        dspy.Example(thing=f"a {c} hat {i}", colour=c).with_inputs("thing") for i in range(8) for c in desk.COLOURS
    ]
    return dspyc.BootstrapFinetune(
        metric=lambda e, p: e.colour == p.colour,
        adapter=adapter or dspyc.TerseAdapter(),
        train_kwargs={"method": "lora", "epochs": 12, "batch_size": 16, "learning_rate": 1e-2, **train_kwargs},
        run_dir=run_dir,
    ).compile(student, trainset=examples)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    folder = tmp_path_factory.mktemp("artifact")
    program = compiled(folder / "run")
    program.save(folder / "colours")
    return program, folder / "colours"


@pytest.fixture
def copy(artifact: tuple[Any, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(artifact[1], tmp_path / "moved"))


def test_a_fresh_process_answers_fifty_inputs_identically(artifact: tuple[Any, Path], copy: Path) -> None:
    program, _ = artifact
    things = [f"{word} {colour} {noun}" for word in ("a", "my", "the", "one", "this") for colour in (*desk.COLOURS, "odd")
              for noun in ("hat", "car")]  # fmt: skip
    assert len(things) == 50
    here = [program(thing=thing).toDict() for thing in things]
    done = subprocess.run(
        [sys.executable, "-c", ANSWER, str(copy)], input=json.dumps(things), capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == here
    assert len({str(answer) for answer in here}) > 1


def test_full_weights_survive_too(tmp_path: Path) -> None:
    program = compiled(tmp_path / "run", method="full", epochs=4, learning_rate=1e-3)
    program.save(tmp_path / "colours")
    assert (
        "final_model, made from dspyc/tiny | `weights/0` (full model)" in (tmp_path / "colours/README.md").read_text()
    )
    shutil.rmtree(tmp_path / "run")  # the artifact needs nothing of the run
    loaded = dspyc.load(tmp_path / "colours")
    things = [f"a {colour} hat" for colour in desk.COLOURS]
    assert [loaded(thing=t).colour for t in things] == [program(thing=t).colour for t in things]


def test_an_artifact_with_its_base_needs_nothing_that_lies_elsewhere(tmp_path: Path) -> None:
    base, things = small.folder(tmp_path / "base"), ("red", "green", "blue")
    settings = TrainingConfig(precision="fp32", max_steps=4, learning_rate=0.1)
    made = train(str(base), small.rows(8), config=settings, output_dir=tmp_path / "run")
    options = {"max_tokens": 8, "cache": False, "device": "cpu", "dtype": "float32"}

    def program(adapter: str | None = None) -> dspy.Predict:
        predictor = dspy.Predict("thing -> colour")
        adapt(predictor, dspyc.TerseAdapter())
        predictor.set_lm(dspyc.LocalLM(str(base), adapter, **options))
        return predictor

    def answers(predictor: dspy.Predict) -> list[str]:
        return [predictor(thing=thing).colour for thing in things]

    trained = program(made.path)
    here, untrained = answers(trained), answers(program())
    assert here != untrained
    dspyc.save(trained, tmp_path / "small")
    dspyc.save(trained, tmp_path / "saved", include_base=True)
    shutil.copytree(tmp_path / "saved", tmp_path / "moved")
    for gone in ("base", "run", "saved"):
        shutil.rmtree(tmp_path / gone)

    verify(tmp_path / "moved")
    assert answers(dspyc.load(tmp_path / "moved", device="cpu", dtype="float32")) == here
    with pytest.raises(ArtifactError, match=r"base. does not exist.* Pass base='its folder' to dspyc.load"):
        dspyc.load(tmp_path / "small", device="cpu")
    kept = dspyc.load(tmp_path / "small", base=str(tmp_path / "moved" / "base" / "0"), device="cpu", dtype="float32")
    assert answers(kept) == here


def test_what_is_in_it(artifact: tuple[Any, Path]) -> None:
    program, path = artifact
    suffixes = {p.suffix for p in path.rglob("*") if p.is_file()}
    assert suffixes <= {".json", ".safetensors", ".md", ".png", ".jinja", ""}  # no pickle, no code
    facts = verify(path)
    assert facts["report"]["verdict"]["after"] == program.report.after
    assert facts["versions"]["dspy"] == dspy.__version__
    readme = (path / "README.md").read_text()
    assert f"{program.report.after:.3f}" in readme
    assert "dspyc.load" in readme
    assert "Serve `weights/`" in readme
    assert "not in this folder" not in readme
    loaded = dspyc.load(path)
    assert loaded.report == program.report
    assert isinstance(loaded.adapter, dspyc.TerseAdapter)


def test_its_readme_says_which_weights_stay_elsewhere(tmp_path: Path) -> None:
    program = dspy.Predict("thing -> colour")
    program.set_lm(dspy.LM("openai/ft:gpt-4.1-mini:shop::1"))
    dspyc.save(program, tmp_path / "kept")
    readme = (tmp_path / "kept" / "README.md").read_text()
    assert "The weights of `openai/ft:gpt-4.1-mini:shop::1` are not in this folder" in readme
    assert "`weights/`" not in readme


@pytest.mark.parametrize(
    ("card", "base"),
    [
        ('---\nbase_model: "Qwen/Qwen3-0.6B"\nlicense: mit\n---\n# A', "Qwen/Qwen3-0.6B"),
        ("---\nlicense: mit\nbase_model: Qwen/Qwen3-0.6B\n---\n", "Qwen/Qwen3-0.6B"),
        ("# A\n\nbase_model: Qwen/Qwen3-0.6B\n", None),
        ("---\nlicense: mit\n---\nbase_model: x\n", None),
        ("", None),
    ],
)
def test_a_base_is_what_the_card_says(tmp_path: Path, card: str, base: str | None) -> None:
    assert made_from(tmp_path) is None
    (tmp_path / "README.md").write_text(card)
    assert made_from(tmp_path) == base


@pytest.mark.parametrize("change", ["edit", "cut", "remove"])
def test_any_changed_file_is_found_and_named(copy: Path, change: str) -> None:
    for path in sorted(p for p in copy.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if change == "edit":
            middle = len(content) // 2
            path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
        elif change == "cut":
            path.write_bytes(content[:-1])
        else:
            path.unlink()
        with pytest.raises(ArtifactError, match=path.name):
            dspyc.load(copy)
        path.write_bytes(content)
    dspyc.load(copy)


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (lambda: dspy.ChainOfThought("thing -> colour"), "holds predictors"),
        (lambda: dspy.Predict("thing -> colour: bool"), "other fields or types"),
        (lambda: "no program", "made a str"),
    ],
)
def test_another_program_is_refused(copy: Path, program: Callable[[], Any], words: str) -> None:
    with pytest.raises(ArtifactError, match=words):
        dspyc.load(copy, program)


def test_a_base_with_other_weights_is_refused(copy: Path, tmp_path: Path) -> None:
    import dspyc.models

    other = Path(shutil.copytree(dspyc.models.resolve("dspyc/tiny"), tmp_path / "base"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    with pytest.raises(ArtifactError, match="other weights"):
        dspyc.load(copy, base=str(other))


def test_an_artifact_of_another_format_is_refused(copy: Path) -> None:
    facts = json.loads((copy / "artifact.json").read_text())
    (copy / "artifact.json").write_text(json.dumps({**facts, "format": 99}))
    write_sums(copy)
    with pytest.raises(ArtifactError, match=r"has format 99; this version of dspyc reads format 1\."):
        verify(copy)


def test_saving_replaces_an_artifact_and_nothing_else(artifact: tuple[Any, Path], copy: Path, tmp_path: Path) -> None:
    program, _ = artifact
    program.save(copy)
    verify(copy)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtifactError, match="is not an artifact"):
        program.save(foreign)
    assert (foreign / "thesis.txt").read_text() == "years of work"
    with pytest.raises(ArtifactError, match="no artifact at"):
        dspyc.load(tmp_path / "nowhere")


def test_a_program_class_is_imported_or_passed(tmp_path: Path) -> None:
    optimizer = dspyc.BootstrapFinetune(
        metric=None, teacher_lm=dspyc.ScriptedLM(desk.expert), train_kwargs=desk.QUICK, run_dir=tmp_path / "run"
    )
    program = optimizer.compile(desk.student(), trainset=desk.examples(4))
    program.save(tmp_path / "desk")
    assert isinstance(dspyc.load(tmp_path / "desk"), desk.Desk)
    assert isinstance(dspyc.load(tmp_path / "desk", desk.Desk()), desk.Desk)
    mine = desk.Desk()
    dspyc.load(tmp_path / "desk", mine)
    assert mine.name.lm is None  # the caller's program is a pattern, not the result


def test_plain_dspy_reads_the_state(artifact: tuple[Any, Path]) -> None:
    program, path = artifact
    plain = dspy.Predict("thing -> colour")
    plain.load(path / "program.json")
    assert plain.signature.instructions == program.signature.instructions
    assert plain.lm is None


def test_a_compiled_program_saves_dspys_state_by_suffix(artifact: tuple[Any, Path], tmp_path: Path) -> None:
    program, _ = artifact
    program.save(tmp_path / "state.json")
    assert "signature" in json.loads((tmp_path / "state.json").read_text())


def test_a_copy_by_cloudpickle_is_of_the_same_class_and_can_be_saved(tmp_path: Path) -> None:
    student = dspy.ChainOfThought("thing -> colour")
    program = dspyc.LabeledFewShot(k=1).compile(
        student, trainset=[dspy.Example(thing="a hat", colour="red", reasoning="It is.").with_inputs("thing")]
    )
    again = cloudpickle.loads(cloudpickle.dumps(program))
    assert type(again) is type(program)
    assert again.predict.demos == program.predict.demos
    again.save(tmp_path / "hats")
    facts = json.loads((tmp_path / "hats" / "artifact.json").read_text())
    assert facts["program"]["class"] == "dspy.predict.chain_of_thought:ChainOfThought"


def test_half_a_surrogate_pair_in_a_demo_is_kept(tmp_path: Path) -> None:
    half = json.loads('"cut in the middle \\ud83d"')
    program = dspyc.LabeledFewShot(k=1).compile(
        dspy.Predict("thing -> colour"), trainset=[dspy.Example(thing=half, colour="red").with_inputs("thing")]
    )
    program.save(tmp_path / "half")
    assert dspyc.load(tmp_path / "half").demos[0]["thing"] == half


def save_without_room(artifact: Path, out: Path) -> None:
    program = dspyc.load(artifact)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    program.save(out)


def test_no_room_for_an_artifact_leaves_none(artifact: tuple[Any, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="Could not write the artifact"):
        Elsewhere(save_without_room, artifact[1], tmp_path / "out").result()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("constrained", [True, False])
def test_whether_replies_are_constrained_is_kept(tmp_path: Path, constrained: bool) -> None:
    program = dspy.Predict("thing -> colour")
    program.set_lm(dspyc.LocalLM("dspyc/tiny", constrained=constrained))
    dspyc.save(program, tmp_path / "program")
    lm = dspyc.load(tmp_path / "program").lm
    assert isinstance(lm, ConstrainedLM) is constrained


REPOSITORY = Path(__file__).parents[2]
KILLED = """
import json, os, sys
from pathlib import Path
import dspy, dspyc
from dspyc.compiler import verify
from tests.dying import deaths

def program(model):
    made = dspy.Predict("q -> a")
    made.set_lm(dspy.LM(model))
    return made

def prepare(moment):
    path = Path(sys.argv[1]) / str(moment) / "desk"
    dspyc.save(program("openai/old"), path)
    return path

found, changes = [], ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree")
for path in deaths(prepare, lambda path: dspyc.save(program("openai/new"), path), changes, sys.argv[2]):
    found.append(verify(path)["lms"][0]["model"])
    assert dspyc.load(path).lm.model == found[-1]
    dspyc.save(program("openai/old"), path)
    assert os.listdir(path.parent) == ["desk"]
print(json.dumps(found))
"""


@pytest.mark.parametrize("how", ["kill", "interrupt"])
def test_an_artifact_that_is_being_replaced_is_whole_wherever_its_writer_dies(tmp_path: Path, how: str) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path), how]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 5
    assert set(found) == {"openai/old", "openai/new"}
    assert found == sorted(found, reverse=True)
