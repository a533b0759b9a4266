"""From the table of results to frontiers, figures and one HTML page. Reads records, trains nothing, imports no torch."""
