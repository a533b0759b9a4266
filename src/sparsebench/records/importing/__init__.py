"""Other people's result files as rows of our table: their layouts, how a file is read, and where its rows are kept."""
