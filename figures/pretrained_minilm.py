"""MiniLM as a sentence encoder, and sentences, for pretrained.py.

    python figures/pretrained_minilm.py

prints how many sentences there are, and the first of them. They are those of the docstrings of
Python's own library, so that whoever has the same Python has the same sentences.
"""

import ast
import re
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

PROSE = re.compile(r"[A-Z][a-z]* [A-Za-z,;:' -]+\.?")  # no code, no numbers


class Block(nn.Module):
    """A layer of BERT (Devlin et al. 2019), with its names."""

    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.heads = heads
        dense = nn.ModuleDict
        self.attention = dense({
            "self": dense({n: nn.Linear(width, width) for n in ("query", "key", "value")}),
            "output": dense({"dense": nn.Linear(width, width),
                             "LayerNorm": nn.LayerNorm(width, eps=1e-12)}),
        })  # fmt: skip
        self.intermediate = dense({"dense": nn.Linear(width, wide)})
        self.output = dense(
            {"dense": nn.Linear(wide, width), "LayerNorm": nn.LayerNorm(width, eps=1e-12)}
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        own, out = self.attention["self"], self.attention["output"]
        split = [
            own[n](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for n in ("query", "key", "value")
        ]
        mixed = functional.scaled_dot_product_attention(*split, attn_mask=mask[:, None, None])
        x = out["LayerNorm"](x + out["dense"](mixed.transpose(1, 2).flatten(2)))
        wide = functional.gelu(self.intermediate["dense"](x))
        return self.output["LayerNorm"](x + self.output["dense"](wide))


class Encoder(nn.Module):
    """MiniLM (Wang et al. 2020) as a sentence encoder: the mean of its tokens, of length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({
            "word_embeddings": nn.Embedding(30522, 384),
            "position_embeddings": nn.Embedding(512, 384),
            "token_type_embeddings": nn.Embedding(2, 384),
            "LayerNorm": nn.LayerNorm(384, eps=1e-12),
        })  # fmt: skip
        self.encoder = nn.ModuleDict(
            {"layer": nn.ModuleList(Block(384, 12, 1536) for _ in range(6))}
        )

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        e = self.embeddings
        place = torch.arange(tokens.shape[1])
        x = e["word_embeddings"](tokens) + e["position_embeddings"](place)
        x = e["LayerNorm"](x + e["token_type_embeddings"](torch.zeros_like(tokens)))
        for block in self.encoder["layer"]:
            x = block(x, mask)
        weight = mask[..., None].float()
        return functional.normalize((x * weight).sum(1) / weight.sum(1), dim=-1)


def sentences(number: int, halves: Sequence[str]) -> dict[str, list[str]]:
    """First sentences of Python's own docstrings, 40 to 200 letters; a module is in one half."""
    root = Path(sysconfig.get_paths()["stdlib"])
    made: dict[str, list[str]] = {half: [] for half in halves}
    for turn, path in enumerate(sorted([*root.glob("*.py"), *root.glob("[a-z]*/[a-z]*.py")])):
        if {"site-packages", "test", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text())
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = (ast.get_docstring(node) or "").split("\n\n")[0]
                text = " ".join(text.split()).split(". ")[0]
                if 40 <= len(text) <= 200 and PROSE.fullmatch(text):
                    made[halves[turn % 2]].append(text)
    found = {half: sorted(set(texts)) for half, texts in made.items()}
    return {h: texts[:: max(len(texts) // number, 1)][:number] for h, texts in found.items()}


def load_(model: Encoder, folder: Path) -> None:
    """The weights, but for those of the pooler, which no sentence passes."""
    stored = load_file(folder / "model.safetensors")
    model.load_state_dict({n: stored[n] for n in model.state_dict()})


def batches(folder: Path, texts: Sequence[str], size: int) -> list[tuple[Tensor, Tensor]]:
    """Tokens and where they are, of sentences of like lengths together."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(128)
    coded = sorted((tokenizer.encode(text).ids for text in texts), key=len)
    made = []
    for start in range(0, len(coded), size):
        part = coded[start : start + size]
        tokens = torch.zeros(len(part), len(part[-1]), dtype=torch.int64)
        for row, ids in zip(tokens, part, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        made.append((tokens, tokens != 0))
    return made


if __name__ == "__main__":
    for half, texts in sentences(500, ("choice", "report")).items():
        print(half, len(texts), *texts[:5], sep="\n  ")
