"""What a run shows: audit, parameters, summary, pictures; one report a kind of task."""
