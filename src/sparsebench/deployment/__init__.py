"""What is done with the networks of finished runs: how fast they are, and files of them for other programs."""
