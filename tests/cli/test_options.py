"""Options that errors name: the command has them, or they take effect where they are given."""

import ast
import re
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

import swsmix
from swsmix import codec
from swsmix.cli import app
from swsmix.compression import quantize_, quantize_state
from swsmix.compression.rate import DEFAULT_LOSS
from swsmix.inspection.inspect import inspect

ROOT = Path(swsmix.__file__).parent
COMMANDS = {
    name: {flag for p in command.params for flag in (*p.opts, *p.secondary_opts)}
    for name, command in typer.main.get_command(app).commands.items()
}
# Modules outside of cli/ whose sentences name options without the command: it is the only one that
# comes to them.
ALONE = {
    "training/runs/claiming.py": "train",
    "inspection/inspect.py": "inspect",
    "problems/reproduction/runner.py": "reproduce",
}


def sentences():
    """The texts in `raise` statements and assignments, with the module that they are in."""
    for path in sorted(ROOT.rglob("*.py")):
        if path.name == "dark.py":
            continue  # the names of style sheets begin with -- too
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise | ast.Assign | ast.Return) and re.search(
                r"(?<!-)--[a-z]", text := " ".join(_texts(node))
            ):
                yield path.relative_to(ROOT).as_posix(), text


def _texts(node):
    """The strings, with `{}` for what is put into them."""
    if isinstance(node, ast.JoinedStr):
        yield "".join("{}" if isinstance(v, ast.FormattedValue) else v.value for v in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _texts(child)


def options_for(module, text):
    """The options that a sentence may name."""
    named = re.findall(rf"`(?:swsmix )?({'|'.join(COMMANDS)})\b", text)
    of_another = {"compress": "decompress", "posterior": "train", "train_settings": "train"}
    command = of_another.get(Path(module).stem)
    command = command or ALONE.get(module, Path(module).stem)
    if command in COMMANDS:  # the module's own
        return COMMANDS[command].union(*(COMMANDS[name] for name in named))
    assert named, f"{module}: which command has it? {text}"
    return set.intersection(*(COMMANDS[name] for name in named))


def test_every_option_in_a_sentence_is_one_of_the_command_that_says_it():
    found = list(sentences())
    assert len(found) > 10
    for module, text in found:
        for option in re.findall(r"--[a-z][a-z-]*", text):
            allowed = options_for(module, text)
            if "--lossless" in text:  # of `compress` alone
                allowed |= COMMANDS["compress"]
            assert option in allowed, (module, option, text)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file with more weights than its size makes plausible."""
    monkeypatch.setattr(codec.budget, "_FREE_WEIGHTS", 100)
    monkeypatch.setattr(codec.budget, "_WEIGHTS_PER_BYTE", 0)
    path = tmp_path / "net.sws"
    with pytest.warns(UserWarning, match="max_weights = 800 or more"):
        path.write_bytes(codec.encode({"w": torch.arange(2.0).repeat(20, 20)}))
    return path


@pytest.mark.parametrize("options", [("--bytes",), ("--no-figures",)])
def test_inspect_reads_a_large_file_with_max_weights(large, options):
    for path in (large, large.parent)[: 1 if options == ("--bytes",) else 2]:
        for most in ((), ("--max-weights", "799")):
            done = CliRunner().invoke(app, ["inspect", str(path), *options, *most])
            assert isinstance(done.exception, ValueError)
            assert "--max-weights of `swsmix decompress` and `inspect`" in str(done.exception)
        done = CliRunner().invoke(app, ["inspect", str(path), *options, "--max-weights", "800"])
        assert done.exit_code == 0 and "800" in done.output


def test_inspect_in_python_has_max_weights_too(large):
    with pytest.raises(ValueError, match="max_weights = 799"):
        inspect(large, max_weights=799)
    assert inspect(large, max_weights=800).size == 800


def test_the_loss_that_help_promises_is_the_default_everywhere():
    (option,) = (
        p for p in typer.main.get_command(app).commands["compress"].params if p.name == "loss"
    )
    guide = (ROOT / "guides" / "compression.md").read_text()
    for text, said in (
        (option.help, r"variance; ([\d.]+) if nothing is asked"),
        (quantize_state.__doc__, r"the default is ([\d.]+)\. "),
        (quantize_.__doc__, r"at most; ([\d.]+) by\s+default"),
        (guide, r"Without any of these the loss is ([\d.]+), "),
    ):
        assert float(re.search(said, text)[1]) == DEFAULT_LOSS
