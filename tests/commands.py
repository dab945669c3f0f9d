"""`swsmix ...` in a process of its own, forked from one that has imported all that commands need.

The imports take longer than most commands. Tests of the start itself call the interpreter instead.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile

MAIN = "from swsmix.cli import main\nmain()"
# The pictures of a training take longer than three epochs of it.
UNDRAWN = f"""import importlib
importlib.import_module("swsmix.cli.train")._save_figures = lambda outcome, out: []
{MAIN}"""
_FORKED = "forkserver" in multiprocessing.get_all_start_methods()
_IMPORTED = [
    "swsmix.cli", "swsmix.bayes", "swsmix.compression.recipe", "swsmix.inspection.live",
    "swsmix.plots", "swsmix.problems.experiments", "swsmix.problems.seeds", "rich.progress",
]  # fmt: skip


def run(*arguments, fails=None, program=MAIN):
    """What the command prints, or says as it fails; `program` is Python that calls `main`."""
    code, printed, said = _done([*map(str, arguments)], program)
    if fails is None:
        assert code == 0, said
        return printed
    assert code == 1 and "Traceback" not in said
    assert fails in said
    return said


def ended(*arguments, program=MAIN):
    """The exit code of a command, and what it says on standard error."""
    code, _, said = _done([*map(str, arguments)], program)
    return code, said


def _done(arguments, program):
    """Exit code, standard output and standard error."""
    environment = {**os.environ, "COLUMNS": "200"}
    if not _FORKED:
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True,
            env=environment, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with tempfile.TemporaryDirectory() as folder:
        files = [os.path.join(folder, name) for name in ("printed", "said")]
        child = context.Process(
            target=_child, args=(program, arguments, environment, os.getcwd(), files)
        )
        child.start()
        child.join()
        texts = []
        for name in files:
            with open(name, encoding="utf-8") as file:
                texts.append(file.read())
    return child.exitcode, *texts


def _child(program, arguments, environment, folder, files):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for descriptor, name in enumerate(files, 1):
        with open(name, "wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = ["swsmix", *arguments]
    exec(compile(program, "program", "exec"), {"__name__": "__main__"})
