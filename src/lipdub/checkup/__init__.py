"""Looking after an installation: the doctor, the benchmark, contact sheets, and media to try a dub on."""
