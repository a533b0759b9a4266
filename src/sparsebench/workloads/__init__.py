"""What is trained: model, data, loss, metric and reference recipe. Knows nothing of sparsifiers."""
