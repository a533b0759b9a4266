"""Translation: parallel text, a shared subword vocabulary, the Transformer, decoding, BLEU."""
