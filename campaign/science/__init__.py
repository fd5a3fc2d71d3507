"""Physics and statistics on arrays: no files, no processes, no site."""
