"""One-line callbacks for training loops that are somebody else's: `transformers.Trainer` and Lightning."""
